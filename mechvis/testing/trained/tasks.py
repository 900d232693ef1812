"""The planted tasks, by name."""

from mechvis.errors import unknown
from mechvis.testing.trained import colour_if_shape, same_different
from mechvis.testing.trained.task import PlantedTask

TASKS: dict[str, PlantedTask] = {task.name: task for task in (colour_if_shape.TASK, same_different.TASK)}


def task_of(name: str) -> PlantedTask:
    """The task of a name; underscores are as good as hyphens.

    Raises:
        UnknownName: no such task.

    Example:
        >>> task_of("colour_if_shape").classes[0]
        'red or horizontal'
    """
    found = TASKS.get(name.replace("_", "-"))
    if found is None:
        raise unknown("planted task", name, TASKS)
    return found
