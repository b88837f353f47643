"""What a person can ask of `intone plan`"""

from dataclasses import dataclass

from intone.errors import UserError
from intone.fields import Checked, setting


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Checked):
    """`intone plan [TEXT] [PATH]`: what a code base lacks; with a text, a plan for it and a patch."""

    # what to add, in quotes, and the folder of the code base; no text: list what is missing
    what: tuple[str, ...] = setting((), positional=True)
    # plan what the list calls by this name, such as kv-cache
    choose: str | None = None
    # write the plan and change no code
    plan_only: bool = False
    # language model that writes the patch; needs --base-url
    model: str | None = None
    # address of an OpenAI-compatible API, such as http://localhost:8000/v1
    base_url: str | None = None
    # key for that address; none given: INTONE_API_KEY, or none
    api_key: str | None = None
    # messages that the model may send
    steps: int = setting(40, least=1)
    # tokens that the model may read and write
    tokens: int = setting(400_000, least=1000)
    # minutes that the model may take
    minutes: float = setting(30.0, least=0.1)
    # command that runs the tests of the code base; none given: pytest, where there are tests
    tests: str | None = None
    # program, run in the root, whose training steps or tokens are timed before and after: "python train.py"
    measure: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.model is None) != (self.base_url is None):
            given, lacking = ("--model", "--base-url") if self.model else ("--base-url", "--model")
            raise UserError(f"{given} needs {lacking}", value=self.model or self.base_url, fix=f"give {lacking} too")
        for name in ("tests", "measure", "api_key"):
            if getattr(self, name) is not None and self.model is None:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} belongs to --model", value=flag, fix="leave it out, or add --model")
        if self.plan_only and self.model is not None:
            raise UserError("--plan-only and --model are two things", value="--plan-only", fix="leave one out")
