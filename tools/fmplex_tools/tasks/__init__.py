"""Making and looking after vFMs: the Python API behind ``fmplex task``.

::

    from pathlib import Path
    from fmplex_tools.tasks import Columns, TaskOptions, create_task, read_examples

    examples = read_examples(Path("mails.csv"), Columns("body", label="folder"))
    result = create_task(Path("model_repository"), "mail_folder", examples, TaskOptions(max_rows=2000))
    print(result.artifact.quality)

What trains or signs is imported only when it is used: listing or removing a vFM loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fmplex_tools.tasks.data import Columns, Examples, read_examples
from fmplex_tools.tasks.manage import (
    TaskInfo,
    add_token,
    create_bundle,
    list_tasks,
    release_task,
    remove_task,
    revoke_tokens,
    set_task,
    show_task,
)
from fmplex_tools.tasks.options import LoraOptions, TaskOptions

if TYPE_CHECKING:
    from fmplex_tools.tasks.api import create_task, train_task
    from fmplex_tools.tasks.importing import import_task
    from fmplex_tools.tasks.making import TaskResult
    from fmplex_tools.tasks.signing import load_key, make_key, sign_task, verify_task

__all__ = [
    "Columns",
    "Examples",
    "LoraOptions",
    "TaskInfo",
    "TaskOptions",
    "TaskResult",
    "add_token",
    "create_bundle",
    "create_task",
    "import_task",
    "list_tasks",
    "load_key",
    "make_key",
    "read_examples",
    "release_task",
    "remove_task",
    "revoke_tokens",
    "set_task",
    "show_task",
    "sign_task",
    "train_task",
    "verify_task",
]

_LATE = {
    "TaskResult": "making",
    **dict.fromkeys(("create_task", "train_task"), "api"),
    "import_task": "importing",
    **dict.fromkeys(("load_key", "make_key", "sign_task", "verify_task"), "signing"),
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        from importlib import import_module

        return getattr(import_module(f"fmplex_tools.tasks.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
