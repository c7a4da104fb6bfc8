"""A task of one's own: found, typed, tried out, and each mistake answered by one line."""

import json
import pathlib
import pickle
import re

import pytest
import torch
from helpers.task_files import write

from parle_hpc import Task
from parle_hpc.checkpoints import resume
from parle_hpc.data.split import MiniBatches
from parle_hpc.errors import BadInput
from parle_hpc.settings import load
from parle_hpc.settings import write as write_settings
from parle_hpc.tasks.chosen import Sources
from parle_hpc.training.computing import Computing
from parle_hpc.training.opening import check_samples, checked_model
from parle_hpc.training.setup import make_model
from parle_hpc.training.validation import Validation


def settings_of(path, *more):
    return load(["--task.file", str(path), *more])


def opened(path, *more):
    """What a run does with a task before it trains."""
    settings = settings_of(path, *more)
    sources = Sources(settings)
    check_samples(settings, sources.train, sources.validation)
    batches = MiniBatches(range(len(sources.train)), settings.data.batch_size, seed=0, replica=0)
    return sources, batches, checked_model(settings, sources.train, settings.data.batch_size)


def refused(*given):
    with pytest.raises(BadInput) as error:
        opened(*given)
    line = str(error.value)
    assert "\n" not in line
    return line


RIGHT_LOSS = "return nn.functional.mse_loss(model(batch[0]), batch[1])"
SCORE = 'return {"close": ((model(batch[0]) - batch[1]).abs() < 0.3).flatten().float()}'
WRONG = {
    "syntax": ([("class Sine(Task):", "class Sine(Task:")], ["sine.py, line 18: "]),
    "import": ([("import torch\n", "import torsh\n")], ["sine.py, line 1: ModuleNotFoundError", "torsh"]),
    "lacks": ([("def scores(", "def score(")], ["Sine lacks scores(self, model, batch)"]),
    "none": ([("Sine(Task)", "Sine")], ["has no task; define a class over parle_hpc.Task with model, dataset"]),
    "taken": ([("width: int", "name: int"), ("options.width", "options.name")], ["Options cannot have 'name'"]),
    "not a model": (
        [("width, 1))", "width, 1)).parameters()")],
        ["model() must give a torch.nn.Module, not generator"],
    ),
    "raises": ([("nn.Linear(1, self", "nn.Linear(1, self.depth")], ["model(): sine.py, line 25: AttributeError"]),
    "other data": (
        [("nn.Linear(1, self", "nn.Linear(2, self")],
        ["loss(model, batch): sine.py, line 31: "],
    ),
    "not a mean": (
        [(RIGHT_LOSS, "return (model(batch[0]) - batch[1]).square()")],
        ["a mean, not shape (4, 1)"],
    ),
    "a number": ([(RIGHT_LOSS, "return 1.0")], ["shape (), a mean, not float"]),
    "no gradient": ([(RIGHT_LOSS, "return batch[1].mean()")], ["loss(model, batch) has no gradient"]),
    "no score": ([(SCORE, "return {}")], ["scores(model, batch) must give a dict of tensors by name"]),
    "a mean score": ([("flatten().float()", "float().mean()")], ["the score close", "shape (4,), not ()"]),
    "empty": ([("Points(90, 1)", "Points(0, 1)")], ["dataset('validation') has no samples"]),
    "few": ([("Points(400", "Points(100")], ["--data.batch_size 128: a replica sees 100 samples"]),
    "shapes": (
        [("return self.x[index] +", "return torch.zeros(1 + index) +")],
        ["a batch of 4 samples: ", "RuntimeError", "size"],
    ),
    "no length": ([("def __len__", "def length")], ["len() of dataset('train')", "TypeError"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_in_it_is_one_line_with_its_place(tmp_path, case):
    changes, words = WRONG[case]
    line = refused(write(tmp_path, *changes))
    assert all(word in line for word in words), line
    assert "sine.py" in line or case == "few"


def test_options_are_typed_and_known_by_name(tmp_path, capsys):
    path = write(tmp_path)
    assert settings_of(path, "--task.width", "9").task.width == 9
    assert refused(path, "--task.width", "x").startswith("--task.width x: must be a valid integer")
    assert refused(path, "--task.widht", "9") == "--task.widht: unknown setting; did you mean task.width?"
    assert "belongs to the task images, not to" in refused(path, "--model.name", "wrn")
    assert "belongs to the task images, not to" in refused(path, "--data.augment", "true")
    needed = write(tmp_path, ("width: int = 16", "width: int"), name="needed.py")
    assert refused(needed).startswith("--task.width: has no default; give it")
    with pytest.raises(SystemExit):
        settings_of(path, "--help")
    assert re.search(r"--task.width int\s", capsys.readouterr().out)


def test_a_recipe_names_a_file_beside_it_and_settings_written_are_read(tmp_path, monkeypatch):
    path = write(tmp_path)
    (tmp_path / "mine.toml").write_text('[task]\nfile = "sine.py"\nwidth = 8\n')
    monkeypatch.chdir("/")
    settings = load(["--recipe", str(tmp_path / "mine.toml")])
    assert (settings.task.file, settings.task.width) == (str(path), 8)
    write_settings(settings, tmp_path / "config.toml")
    again = load(["--recipe", str(tmp_path / "config.toml")])
    assert again.model_dump(exclude={"recipe"}) == settings.model_dump(exclude={"recipe"})
    (tmp_path / "mine.toml").write_text('[task]\nfile = "sine.py"\nwidht = 8\n')
    with pytest.raises(BadInput, match=r"'task.widht' is an unknown setting; did you mean task.width\?"):
        load(["--recipe", str(tmp_path / "mine.toml")])


def test_options_may_be_of_types_that_toml_and_json_do_not_have(tmp_path):
    more = "width: int = 16\n        path: pathlib.Path = pathlib.Path('a')\n        pair: tuple[int, int] = (1, 2)"
    path = write(tmp_path, ("width: int = 16", more), ("import torch\n", "import pathlib\n\nimport torch\n"))
    settings = settings_of(path, "--task.path", "b")
    write_settings(settings, tmp_path / "config.toml")
    again = load(["--recipe", str(tmp_path / "config.toml")])
    assert (again.task.path, again.task.pair) == (pathlib.Path("b"), (1, 2))
    manifest = {"settings": json.loads(json.dumps(resume.sections(settings)))}
    resume.check_settings(manifest, again, tmp_path)


def test_of_several_one_is_named_and_a_module_is_found_by_its_name(tmp_path, monkeypatch):
    path = write(tmp_path, ("class Sine(Task):", "class Other(Task):\n    pass\n\n\nclass Sine(Task):"))
    assert "has the tasks Other, Sine; say which by --task.name" in refused(path)
    assert type(Sources(settings_of(path, "--task.name", "Sine")).task).__name__ == "Sine"
    assert "no such task; did you mean Sine?" in refused(path, "--task.name", "Sin")
    assert "Other lacks model(self)" in refused(path, "--task.name", "Other")
    path.rename(tmp_path / "my_sines.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert type(Sources(settings_of("my_sines:Sine")).task).__name__ == "Sine"
    assert "ModuleNotFoundError: No module named 'no_sines'" in refused("no_sines:Sine")
    assert refused(tmp_path / "missing.py").endswith("missing.py: no such file")


def test_trying_it_out_changes_no_random_number_and_leaves_no_gradient(tmp_path):
    path = write(tmp_path)
    settings = settings_of(path)
    sources = Sources(settings)

    class Alone:
        m, n, place, replica_index = 1, 1, 0, 0

        together = staticmethod(lambda function, *given: function(*given))
        broadcast = staticmethod(lambda tensors: None)

    model = make_model(settings, sources.train, Alone, torch.device("cpu"))
    torch.manual_seed(settings.run.seed)
    plain = sources.task.model()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_its_sources_are_made_again_in_another_process_of_the_settings_alone(tmp_path):
    sources = Sources(settings_of(write(tmp_path), "--task.width", "5"))
    again = pickle.loads(pickle.dumps(sources))
    assert again.task.options.width == 5
    assert torch.equal(again["train"].dataset.x, sources.train.dataset.x)


def test_its_scores_are_means_over_the_samples_and_its_network_runs_once_a_batch(tmp_path):
    sources, _, model = opened(write(tmp_path))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    inner = []
    model[0].register_forward_hook(lambda *_: inner.append(1))
    validation = Validation(Computing(sources.task, model, torch.device("cpu")), sources, 40, at_once=40)
    score = validation.test()
    assert len(inner) == 3  # of 40, 40 and 10 samples
    noise = [sample for indices in (range(40), range(40, 80), range(80, 90)) for sample in indices]
    assert len(noise) == len(sources.validation)
    with torch.no_grad():
        whole = (model(sources.validation.dataset.x), torch.sin(6 * sources.validation.dataset.x))
    # samples have noise of their own
    assert score.loss == pytest.approx((whole[0] - whole[1]).square().mean().item(), rel=0.05)
    assert score.scores["close"] == pytest.approx(((whole[0] - whole[1]).abs() < 0.3).double().mean().item(), abs=0.05)
    assert validation.test() == score
    assert "forward" not in vars(model)


def test_what_a_task_must_have_is_said_by_its_base():
    task = Task()
    for call in (task.model, lambda: task.dataset("train"), lambda: task.loss(None, None)):
        with pytest.raises(NotImplementedError):
            call()
    assert task.prepare("batch", None) == "batch"
