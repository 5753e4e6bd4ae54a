"""The command line as typed: a command, its flags and its overrides. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmtrain.errors import UserError, did_you_mean


class UsageError(UserError):
    """A command line that makes no sense."""


@dataclass(frozen=True)
class Command:
    """What the table of commands says of one."""

    purpose: str
    """One line for --help."""
    examples: tuple[str, ...]
    """Command lines for --help, without `llmtrain`."""
    flags: frozenset[str] = frozenset()
    """Flags besides those that every command has."""
    overrides: bool = True
    """Whether it takes overrides."""
    actions: tuple[str, ...] = ()
    """Words of which one follows the command."""
    folders: str = ""
    """What follows the command without a key, for --help: RUN (one folder), [DIR ...] (several)."""
    of_run: bool = False
    """Whether it has the setting `run`; its folder may stand alone, as RUN does."""


COMMANDS = {
    "train": Command(
        "prepare data if it is not cached, train, evaluate, save; an existing run_dir resumes",
        (
            "train experiment=shakespeare_char_cpu",
            "train model=llama_tiny optimizer.lr=3e-4 train.steps=500",
            "train data=text data.path=books/ tokenizer=bpe run_dir=runs/books",
            "train strategy=data launcher.nproc_per_node=2",
            "train -m optimizer=adamw,lion,muon optimizer.lr=1e-3,3e-4",
        ),
        frozenset({"--multirun", "--dry-run", "--cfg", "--config-dir"}),
    ),
    "prepare": Command(
        "raw text -> clean -> dedup -> tokenizer -> shards, nothing more",
        (
            "prepare data=jsonl data.path=corpus.jsonl.gz tokenizer=bpe tokenizer.vocab_size=8192",
            "prepare --inspect shakespeare-0123456789abcdef documents=3 ids=true",
            "prepare --samples run=runs/books step=120..122",
        ),
        frozenset({"--cfg", "--config-dir", "--json", "--inspect", "--samples"}),
    ),
    "evaluate": Command(
        "loss and perplexity of a checkpoint",
        ("evaluate run=runs/books", "evaluate run=runs/books step=latest split=train"),
        frozenset({"--cfg", "--json"}),
        of_run=True,
    ),
    "generate": Command(
        "text from a checkpoint",
        (
            'generate run=runs/books prompt="Once upon a time"',
            "generate run=runs/books temperature=0.7 top_p=0.9 max_new_tokens=500",
        ),
        frozenset({"--cfg", "--json"}),
        of_run=True,
    ),
    "replay": Command(
        "a step of a run again, from a checkpoint before it, with every layer looked at",
        ("replay run=runs/books step=120", "replay run=runs/books event=1 --json"),
        frozenset({"--cfg", "--json"}),
        of_run=True,
    ),
    "verify": Command(
        "prove that strategies compute what one process computes: losses, gradients and weights",
        (
            "verify",
            "verify verify.quick=true",
            "verify model=llama_micro verify.strategies=[tp2,pp2_1f1b,zero3xtp2] verify.steps=10",
            "verify 'verify.strategies=[\"strategy=model launcher.nproc_per_node=4\"]'",
            "verify train.precision=fp32 run_dir=runs/verify/fp32 --json",
        ),
        frozenset({"--cfg", "--config-dir", "--json"}),
    ),
    "checkpoint": Command(
        "list, verify, convert or delete what a run has saved",
        (
            "checkpoint list run=runs/books",
            "checkpoint verify run=runs/books step=latest",
            "checkpoint convert run=runs/books step=best out=books.safetensors dtype=bf16",
            "checkpoint delete run=runs/books step=500,1000",
        ),
        frozenset({"--cfg", "--json"}),
        actions=("list", "verify", "convert", "delete"),
        of_run=True,
    ),
    "jobs": Command(
        "runs that were submitted to Slurm: job, state, step, how often queued again",
        ("jobs", "jobs runs/books sweeps --json"),
        frozenset({"--json"}),
        overrides=False,
        folders="[DIR ...]",
    ),
    "logs": Command(
        "the log of a run's rank, and what its Slurm job has printed",
        ("logs runs/books/1 -f", "logs runs/books/1 rank=3"),
        frozenset({"--follow"}),
        folders="RUN",
    ),
    "cancel": Command(
        "end a run, or a sweep, after a checkpoint",
        ("cancel runs/books/1",),
        overrides=False,
        folders="RUN",
    ),
    "doctor": Command(
        "what this machine offers, and what to mend: devices, backends, ports, disk, versions",
        ("doctor", "doctor --json"),
        frozenset({"--json"}),
        overrides=False,
    ),
}
"""Every command; `llmtrain/cli.py` says what runs it."""

FLAGS = {
    "--help": "this text, or a command's",
    "--version": "the version",
    "--cfg": "print the composed configuration as YAML and stop",
    "--dry-run": "print the plan and stop; nothing is written",
    "--multirun": "run every combination of comma lists, range(), choice(), glob(); put it first",
    "--config-dir": "your own YAML, laid out as conf/ is: DIR/experiment/mine.yaml",
    "--json": "answer with one JSON object on stdout",
    "--follow": "go on until the run has ended",
    "--inspect": "show what a prepared folder holds; settings: prepare --inspect DIR --help",
    "--samples": "list what a step of a run trains on; settings: prepare --samples --help",
    "--completion": "print a script that completes commands, groups, choices and settings",
}
"""Every flag with its one line for --help."""

MODES = {"--inspect": "inspect", "--samples": "samples"}
"""Flags that ask something else of a command, and the root of the settings that go with them."""

SHORT = {
    "-h": "--help", "-V": "--version", "-m": "--multirun", "-n": "--dry-run", "-f": "--follow",
}  # fmt: skip

VALUE_FLAGS = {
    "--cfg": "job", "--config-dir": "DIR", "--inspect": "DIR", "--completion": "bash|zsh|fish",
}  # fmt: skip
"""Flags that are followed by a value."""

SHELLS = ("bash", "zsh", "fish")


@dataclass
class Options:
    """A parsed command line."""

    command: str | None = None
    action: str | None = None
    """What the command is to do, where it does several things."""
    overrides: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    """What was named without a key, of a command that takes folders."""
    flags: set[str] = field(default_factory=set)
    config_dirs: list[Path] = field(default_factory=list)
    inspected: str | None = None
    """The folder that --inspect names."""
    shell: str | None = None

    @property
    def root(self) -> str | None:
        """Whose settings the overrides are: the command's, or those of a flag that changes it."""
        root = next((MODES[flag] for flag in MODES if flag in self.flags), self.command)
        return "checkpoint_command" if root == "checkpoint" else root

    @property
    def typed(self) -> list[str]:
        """The words that lead to the same configuration: overrides, and where their YAML lies."""
        folders = [word for path in self.config_dirs for word in ("--config-dir", str(path))]
        return [*folders, *self.overrides]

    def has(self, flag: str) -> bool:
        """Whether `flag` was given."""
        return flag in self.flags

    def chooses(self, group: str) -> bool:
        """Whether an override chooses something of `group`, of which there may be none."""
        typed = [word.lstrip("+").partition("=") for word in self.overrides]
        return any(key == group and value not in ("", "null") for key, _, value in typed)


def parse(argv: Sequence[str]) -> Options:
    """Return `argv` (without the program's name) parsed.

    Raises:
        UsageError: with a did-you-mean, when a command or a flag is unknown or misplaced.
    """
    options = Options()
    words = iter(argv)
    for word in words:
        if word.startswith("-") and word != "-":
            name, equals, value = word.partition("=")
            flag = SHORT.get(name, name)
            if flag not in FLAGS:
                raise _unknown_flag(options, flag, value if equals else next(words, ""))
            if flag in VALUE_FLAGS:
                _take_value(options, flag, value if equals else next(words, ""))
            options.flags.add(flag)
        elif options.command is None:
            options.command = _command(word)
        elif _is_of_run(options.command) and "=" not in word and Path(word).is_dir():
            options.overrides.append(f"run={word}")
        elif (actions := _actions(options.command)) and "=" not in word:
            if word not in actions:
                raise UsageError(
                    f"llmtrain {options.command} has no '{word}'.{did_you_mean(word, actions)} "
                    f"It has {', '.join(actions)}."
                )
            options.action = word
        elif options.command in COMMANDS and COMMANDS[options.command].folders and (
            "=" not in word or word.startswith("run=") or Path(word).exists()
        ):  # fmt: skip
            options.folders.append(word if Path(word).exists() else word.removeprefix("run="))
        else:
            options.overrides.append(word)
    if options.command == "help":
        options.flags.add("--help")
        options.command = _command(options.overrides.pop(0)) if options.overrides else None
    if options.command is not None:
        _check(options, COMMANDS[options.command])
    return options


def _actions(command: str) -> tuple[str, ...]:
    """Return what one word behind `command` may be; `help` is none of the commands."""
    return COMMANDS[command].actions if command in COMMANDS else ()


def _is_of_run(command: str) -> bool:
    return command in COMMANDS and COMMANDS[command].of_run


def _command(word: str) -> str:
    if word in COMMANDS or word == "help":
        return word
    if "=" in word:
        raise UsageError(f"A command comes first: llmtrain train {word}")
    raise UsageError(
        f"'{word}' is not a command.{did_you_mean(word, COMMANDS)} Commands: {', '.join(COMMANDS)}."
    )


def _unknown_flag(options: Options, flag: str, value: str) -> UsageError:
    """Return the refusal of a flag: the setting that it was meant for, or the nearest flag."""
    setting = _setting_like(options, flag.lstrip("-").replace("-", "_"))
    if setting is not None:
        given = value if value and not value.startswith("-") else "VALUE"
        return UsageError(f"'{flag}' is not a flag: settings are key=value, here {setting}={given}")
    taken = COMMANDS[options.command].flags if options.command in COMMANDS else FLAGS.keys()
    known = [flag for flag in FLAGS if flag in taken or flag == "--help"]
    near = did_you_mean(flag, known)
    if options.command is not None and COMMANDS[options.command].overrides:
        near += f" Settings are key=value: llmtrain {options.command} --help lists them."
    return UsageError(f"'{flag}' is not a flag.{near} Flags: {', '.join(known)}.")


def _setting_like(options: Options, name: str) -> str | None:
    """Return the setting whose name, or its last part, is `name` or ends with it; null: none."""
    # Imported here: only a refusal needs the schemas.
    from llmtrain.commands.groups import groups
    from llmtrain.commands.settings import keys

    command = options.root or "train"
    if (options.command and not COMMANDS[options.command].overrides) or len(name) < 2:
        return None
    given = [word.partition("=") for word in options.overrides]
    known = groups(command, options.config_dirs)
    chosen = {key: value for key, equals, value in given if equals and key in known}
    names = [*known, *(key.name for key in keys(command, chosen, options.config_dirs))]
    names.sort(key=lambda setting: not setting.startswith("train."))  # its seed is the run's
    endings = (f".{name}", f"_{name}")
    found = (n for ending in endings for n in names if f".{n}".endswith(ending))
    return next(found, None)


def _take_value(options: Options, flag: str, value: str) -> None:
    if not value or (flag == "--inspect" and value.startswith("-")):
        raise UsageError(f"{flag} needs a value: {flag} {VALUE_FLAGS[flag]}")
    if flag == "--cfg" and value != "job":
        raise UsageError(f"--cfg {value}: only `--cfg job` is known.")
    if flag == "--config-dir":
        folder = Path(value).expanduser().absolute()
        if not folder.is_dir():
            raise UsageError(f"--config-dir {value}: there is no such folder.")
        options.config_dirs.append(folder)
    if flag == "--inspect":
        options.inspected = value
    if flag == "--completion":
        if value not in SHELLS:
            raise UsageError(f"--completion {value}: known shells are {', '.join(SHELLS)}.")
        options.shell = value


def _check(options: Options, command: Command) -> None:
    """Refuse flags and overrides that the command does not take."""
    if options.flags >= MODES.keys():
        raise UsageError("--inspect looks at a folder, --samples at a run: give one of them.")
    if options.has("--help"):
        return
    for flag in sorted(options.flags - {"--help", "--version", "--completion"}):
        if flag not in command.flags:
            takers = [name for name, c in COMMANDS.items() if flag in c.flags]
            raise UsageError(
                f"llmtrain {options.command} does not take {flag}; it is for {', '.join(takers)}."
            )
    if command.folders == "RUN" and len(options.folders) != 1:
        raise UsageError(
            f"llmtrain {options.command} takes one run directory, and {len(options.folders)} are "
            f"named: llmtrain {command.examples[0]}"
        )
    if options.overrides and not command.overrides:
        raise UsageError(
            f"llmtrain {options.command} takes no settings: leave out "
            f"{' '.join(options.overrides)}."
        )
