"""Every setting, with its type, its bounds and its default."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..errors import possible_name
from ..paths import expand

PAPERS = ("parle", "entropy_sgd", "elastic_sgd", "sgd")
ALGORITHMS = (*PAPERS, "sam", "diloco", "local_sgd")
DATA_PARALLEL = ("entropy_sgd", "sgd", "sam")  # one replica over all ranks
ROUNDS = ("parle", "entropy_sgd")  # an epoch of these is B rounds, of the others one pass


LARGEST = 1e6  # of rates and of epochs: far beyond what trains, and far below what overflows


PathText = Annotated[str, AfterValidator(expand)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class Data(Section):
    name: Annotated[str, AfterValidator(possible_name)] = Field(
        "digits",
        description="data set: digits, mnist, cifar10, cifar100, svhn, or the name that a set of your own was prepared "
        "under",
    )
    path: PathText = Field(
        "",
        description="HDF5 file from python -m parle_hpc.data.prepare; data/NAME.h5 where empty (digits makes itself)",
    )
    node_copy: PathText = Field("", description="a copy of that file on this node, which is read in its place")
    checksum: str | None = Field(
        None, description="what that file's data set must be, as config.toml of a run has it; any where not given"
    )
    batch_size: int = Field(128, ge=1, description="samples in a mini-batch of a replica, over all its ranks")
    accumulate: int = Field(
        1, ge=1, description="parts, one after the other, of a rank's mini-batch, where it does not fit into memory"
    )
    fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="of the training set that each replica sees, section 5; together they see all of it. Of sgd, sam "
        "and entropy_sgd, which have one replica, it is a random part",
    )
    samples: int | None = Field(None, ge=1, description="train on the first of the training images only, this many")
    preprocessing: Literal["none", "standardize", "gcn", "zca"] = Field(
        "none",
        description="none: 0 to 1; standardize: less each channel's mean, over its standard deviation; gcn: global "
        "contrast normalisation; zca: gcn, then ZCA, section 4.3",
    )
    workers: int = Field(
        0, ge=0, le=1024, description="processes a rank that read samples ahead, for data that are slow to read"
    )
    device_memory: float = Field(
        0.25,
        ge=0,
        le=1,
        description="share of a GPU's free memory that the data may take, where they fit into it and there are no "
        "workers; 0 leaves them in the host's",
    )
    augment: bool = Field(False, description="mirror training images by chance, and shift them by up to 4 pixels")


class Model(Section):
    name: Literal["lenet", "allcnn", "wrn"] = Field("lenet", description="network")
    dropout: float = Field(0.25, ge=0, lt=1, description="probability that a unit is dropped")
    depth: int | None = Field(None, ge=10, le=1000, description="of wrn: 6 N + 4; 28 where not given")
    widen: int | None = Field(None, ge=1, le=1000, description="of wrn: k, 10 where not given")
    channels: int | None = Field(
        None, ge=1, le=100_000, description="of allcnn's first convolutions, 96 where not given"
    )


class Algorithm(Section):
    name: Literal[ALGORITHMS] = Field("parle", description="what trains")
    L: int = Field(25, ge=1, le=1_000_000, description="inner steps (mini-batches) in a round, (8c)")
    alpha: float = Field(0.75, ge=0, lt=1, description="weight of the past in z, (8b)")
    gamma0: float = Field(100.0, gt=0, description="gamma at the start, (9); pulls y to x^a by 1/gamma")
    rho0: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=True,
        description="rho at the start, (9); pulls x^a to the reference by 1/rho; inf: independent replicas",
    )
    reference: Literal["current", "lagged", "average"] = Field(
        "current",
        description="x in (8c): mean of this round's x^a; of the last round's (on its own stable only while "
        "lr/rho < (1 + momentum)/(1 + 2 momentum)); or mean of z, which waits for the network",
    )
    eta2: float | None = Field(
        None, gt=0, le=LARGEST, description="parle: eta'' of (8d), where x is not to be the mean (eta'' = rho/n)"
    )
    mu2: float = Field(0.0, ge=0, lt=1, description="parle, with eta2: Nesterov's momentum of x, Remark 2")
    inside: Literal["gradients", "workers"] = Field(
        "gradients", description="ranks of a replica average gradients at every step, or are the workers of (10)"
    )
    payload: Literal["full", "bfloat16"] = Field(
        "full", description="what parle's replicas send: their weights' own type, or bfloat16 with error feedback"
    )
    pace: Literal["steps", "time"] = Field(
        "steps",
        description="parle: every replica makes L inner steps a round; or with time as many as its measured speed "
        "allows, between L/2 and 2 L, so that fast replicas do not wait for slow ones",
    )
    ascent: float = Field(
        0.05, gt=0, le=LARGEST, description="of sam: the length of eps, with each rank's gradient taken at w + eps"
    )
    average: Literal["none", "ema", "swa"] = Field(
        "none",
        description="what is validated and kept, of any algorithm, is an average over the weights after each round: "
        "ema, exponential, or swa, of the last rounds alike",
    )
    average_decay: float = Field(0.9, ge=0, lt=1, description="of ema: weight of the past, a round")
    average_start: float = Field(0.75, ge=0, lt=1, description="of swa: part of the run's rounds after which it begins")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov's mu, Remark 2")
    inner: Literal["sgd", "adamw", "muon"] = Field(
        "sgd",
        description="inner step of parle and entropy_sgd: sgd is (8a); adamw, or muon (on matrices, adamw on the rest) "
        "steps on the gradient of f alone, then y is pulled to x^a by inner_lr/gamma. Then inner_lr is eta', the "
        "weight decay theirs, and schedule.lr eta of (8c) alone, under 1",
    )
    inner_lr: float | None = Field(
        None,
        gt=0,
        le=LARGEST,
        description="eta' of (8a), never annealed but by schedule.inner; schedule.lr where not given",
    )
    clip: float | None = Field(
        None, gt=0, le=LARGEST, description="norm to which a replica's averaged gradient is cut, where it is longer"
    )
    weight_decay: float = Field(
        0.0, ge=0, le=LARGEST, description="added to the gradient as weight_decay * y; of adamw and muon decoupled"
    )
    outer_lr: float = Field(0.7, gt=0, le=LARGEST, description="diloco: rate of its outer step")
    outer_momentum: float = Field(0.9, ge=0, lt=1, description="diloco: Nesterov's momentum of its outer step")
    overlap: bool = Field(
        False, description="diloco: the mean travels during the next round, one round old, and is not waited for"
    )
    post_local_start: float = Field(
        0.0,
        ge=0,
        le=LARGEST,
        description="local_sgd: passes after which the replicas train alone; before, the mean is taken at every step",
    )
    scoping: bool = Field(
        True, description="Elastic-SGD: anneal rho by (9). Stable only while lr (h + 1/rho) < 1.357, h the curvature"
    )


class Coupling(Section):
    via: Literal["mpi", "mailbox"] = Field(
        "mpi",
        description="how replicas reach one another: as ranks of one job, or, each a job of its own, by the files that "
        "they leave in a folder",
    )
    folder: PathText = Field("", description="mailbox: the folder, which all its members see; one for each experiment")
    member: int | None = Field(
        None, ge=0, lt=1_000_000, description="mailbox: which of the members this is, 0, 1, 2, as a replica's number"
    )
    max_age: int = Field(
        20, ge=1, description="mailbox: rounds of its own after which a member no longer counts one that is silent"
    )
    max_seconds: float = Field(3600.0, gt=0, le=LARGEST, description="mailbox: the same in seconds")
    wait_for: int | None = Field(
        None,
        ge=1,
        description="mailbox: wait in each round for that of members 0 to N - 1, which is what MPI does, to the bit; "
        "where not given nobody waits, and what is newest counts",
    )
    weight: float = Field(1.0, gt=0, le=LARGEST, description="mailbox: of this member's x^a in the mean")


class Schedule(Section):
    lr: float = Field(0.1, gt=0, le=LARGEST, description="learning rate eta at the start")
    kind: Literal["drops", "cosine"] = Field(
        "drops", description="eta after the warm-up: divided at each of drops, or half a cosine down to the end"
    )
    warmup: float = Field(0.0, ge=0, le=LARGEST, description="epochs in which eta rises linearly to lr")
    least: float = Field(0.0, ge=0, le=1, description="eta at the end of a cosine, over lr")
    inner: bool = Field(False, description="with adamw or muon inside: eta', inner_lr, goes the same way")
    outer: bool = Field(True, description="false, with schedule.inner: eta of (8c) stays, and eta' alone goes that way")
    drops: list[Annotated[float, Field(ge=0, le=LARGEST)]] = Field(
        [], description="epochs after which eta drops, e.g. 2,4,6; fractions are allowed"
    )
    drop_factor: float = Field(10.0, ge=1, description="eta is divided by this at each drop")
    epochs: float = Field(
        3.0,
        gt=0,
        le=LARGEST,
        description="epochs; of Parle and Entropy-SGD B rounds (L passes over the data), of the others one pass",
    )
    max_rounds: int | None = Field(None, ge=1, description="end after this many rounds even if epochs are left")


class Run(Section):
    seed: int = Field(0, ge=0, lt=2**32, description="seed of weights, order of samples and dropout")
    validate_every: int = Field(10, ge=1, description="rounds between two validations of the reference")
    statistics_batches: int = Field(
        64,
        ge=1,
        description="mini-batches of training data, over all ranks, that give a validation its BatchNorm statistics "
        "and training error; the last validation takes all",
    )
    checkpoint_every: int = Field(
        100,
        ge=1,
        description="rounds between two checkpoints, from which a run goes on; before that after 5, 10, 20, 40 and 80",
    )
    checkpoint_minutes: float = Field(10.0, gt=0, description="minutes after which there is one in any case")
    keep: int = Field(2, ge=1, description="complete checkpoints that stay, beside the one that validated best")
    check_every: int = Field(
        10, ge=1, description="rounds after which the ranks of a replica compare their weights, which must be the same"
    )
    patience: float = Field(
        600.0,
        ge=1,
        le=LARGEST,
        description="seconds without progress, of a rank or a file system, or without a rank at the start, after which "
        "the job is ended",
    )
    grace: float = Field(
        120.0, gt=0, le=LARGEST, description="seconds after a signal after which a rank ends, saved or not"
    )
    save_replicas: bool = Field(False, description="keep each replica's own weights too, in replicas/NUMBER.pt")
    trace: bool = Field(
        False, description="write a torch profiler trace of the second round of each rank, in traces/RANK.json"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to compute; auto takes a GPU if there is one"
    )
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto",
        description="of forward and backward passes: bf16 by autocast, tf32 in a GPU's matrix products, or fp32; auto "
        "is bf16 on a GPU that computes in it, else fp32. Weights and states are float32 in any case",
    )
    compile: bool = Field(
        False, description="compile the network by torch.compile, for which each rank takes a minute at its start"
    )


class TaskSection(Section):
    file: PathText = Field(
        "",
        description="what is trained, where it is your own: a Python file, an installed module, or module:Class, with "
        "a class over parle_hpc.Task",
    )
    name: str = Field(
        "",
        description="of the task: images or language, which come with parle_hpc (images where not given), or the "
        "class in the file, where it has several",
    )
    checksum: str | None = Field(None, description="of that file, as config.toml of a run has it")


class NoOptions(Section):
    """Options of a task whose settings have sections of their own."""


IMAGES = "images"
# what says nothing of other tasks: {section: keys}, and of those what each task takes
DATA_FILE = {"name", "path", "node_copy", "checksum", "device_memory"}
OF_TASKS = {"data": DATA_FILE | {"samples", "preprocessing", "augment"}, "model": set(Model.model_fields)}
TAKEN = {IMAGES: OF_TASKS, "language": {"data": DATA_FILE}}


class Settings(Section):
    recipe: PathText = Field("lenet_digits", description="name of a recipe that comes with parle_hpc, or a TOML file")
    replicas: int | None = Field(
        None,
        ge=1,
        description="replicas n; where not given the first of 3, 2, 1 that divides the ranks; 1 for sgd, sam and "
        "entropy_sgd",
    )
    out: PathText | None = Field(None, description="output folder; where not given runs/RECIPE-DATE-TIME")
    resume: Annotated[PathText, Field(min_length=1)] = Field(
        "auto",
        description="auto: go on from the newest intact checkpoint in the output folder; never: take a new folder; "
        "DIR: from another run's, or from one checkpoint of it, where the output folder has none",
    )
    task: TaskSection = TaskSection()
    data: Data = Data()
    model: Model = Model()
    algorithm: Algorithm = Algorithm()
    coupling: Coupling = Coupling()
    schedule: Schedule = Schedule()
    run: Run = Run()
