"""The task that the settings name, and its parts as loader processes make them again."""

from pathlib import Path

from ..data.tokens import open_tokens
from ..settings.sections import IMAGES
from ..settings.task_file import find_class, is_file, settings_for, with_line
from .images import Images
from .language import LanguageModel


def options_of(settings, kind):
    """The options of a task of the class `kind`, as section `task` has them."""
    return kind.Options(**{key: getattr(settings.task, key) for key in kind.Options.model_fields})


def language(settings):
    """The LanguageModel of the text of section `data`."""
    d = settings.data
    return LanguageModel(options_of(settings, LanguageModel), open_tokens(d.path, d.name, d.checksum, d.node_copy))


BUILT_IN = {IMAGES: Images, "language": language}


def make_task(settings):
    """The Task that the settings name. Raises BadInput, with the line in the file of a task of one's own."""
    t = settings.task
    if not t.file:
        return BUILT_IN[t.name or IMAGES](settings)
    kind = find_class(t.file, t.name)
    return of_user(settings, "the constructor", lambda: kind(options_of(settings, kind)))


def of_user(settings, what, function):
    """What `function`, which calls `what` of a task, gives; its exceptions as BadInput that names the line."""
    if not settings.task.file:
        return function()
    path = Path(settings.task.file) if is_file(settings.task.file) else None
    return with_line(function, path, f"--task.file {settings.task.file}: {what}")


class Source:
    """One part, "train" or "validation", of a task's data, and what makes batches of it."""

    def __init__(self, settings, task, part):
        self.task, self.part, self.draws = task, part, task.draws
        self.dataset = of_user(settings, f"dataset({part!r})", lambda: task.dataset(part))
        self.collate, self.prepare = task.collate, task.prepare

    def __len__(self):
        return len(self.dataset)


class Sources:
    """A task and both of its Sources. Pickled it is the settings alone, of which a loader process makes it again."""

    def __init__(self, settings):
        self._settings, self.task = settings, make_task(settings)
        self.train, self.validation = (Source(settings, self.task, part) for part in ("train", "validation"))

    def __getitem__(self, part):
        return getattr(self, part)

    @property
    def nbytes(self):
        """Bytes of both parts in the memory of a device; 0 where the task's data sets cannot lie there."""
        datasets = self.train.dataset, self.validation.dataset
        can = all(hasattr(dataset, "resident") for dataset in datasets)
        return sum(dataset.nbytes for dataset in datasets) if can else 0

    def reside(self, device):
        """Bring both parts into the memory of a device, where mini-batches are gathered from now on."""
        for source in (self.train, self.validation):
            source.dataset = source.dataset.resident(device)

    def __getstate__(self):
        return self._settings.model_dump()

    def __setstate__(self, dumped):
        task = dumped["task"]
        self.__init__(settings_for(task["file"], task["name"])(**dumped))
