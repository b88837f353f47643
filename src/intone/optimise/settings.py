"""What a person can ask of `intone optimise`"""

from dataclasses import dataclass

from intone.fields import setting
from intone.settings import Checked


@dataclass(frozen=True, kw_only=True)
class OptimiseSettings(Checked):
    """`intone optimise -- PROGRAM`: find what makes a training program slow, change it, and prove each change."""

    # stop after the findings and the plan; nothing is changed
    analyse_only: bool = False
    # two replicates instead of three and more: proves large differences only
    quick: bool = False
    # begin no further try after this many minutes
    minutes: float | None = setting(None, least=0.1)
    # write what was kept into your own files at the end, uncommitted
    apply: bool = False
    # begin a new round even where an unfinished one of this program could go on
    new: bool = False
    # folder that the program is started in
    folder: str = "."
    # round to look at or to undo; none given: the newest
    id: str | None = None
    # take the kept changes of a round out of your files again
    undo: bool = False
