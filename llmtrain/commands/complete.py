"""Shell completion: what may follow the words typed so far. Imports neither hydra nor torch.

The shells' scripts call `llmtrain --complete WORD...`, the last word being the one at the cursor;
each line of the answer is a whole word. `:files` alone asks the shell for file names.
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from llmtrain.commands.groups import groups
from llmtrain.commands.options import COMMANDS, FLAGS, MODES, SHELLS, Options

FILES = ":files"

PATHS = {"path", "run", "run_dir", "cache_dir", "out", "from", "resume"}
"""Last parts of keys whose values are files or folders."""

BOOLEANS = ("true", "false")

BASH = r"""# llmtrain completion for bash: eval "$(llmtrain --completion bash)"
_llmtrain() {
    local line="${COMP_LINE:0:$COMP_POINT}" cur words candidates
    read -r -a words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    cur="${words[${#words[@]}-1]}"
    mapfile -t candidates < <("${words[0]}" --complete "${words[@]:1}" 2>/dev/null)
    # bash takes `=` and `:` for ends of words, and replaces only what follows the last one.
    local tail="${cur##*[=:]}"
    local head="${cur%"$tail"}"
    if [[ "${candidates[0]}" == ":files" ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$tail")
        return
    fi
    mapfile -t COMPREPLY < <(compgen -W "${candidates[*]}" -- "$cur")
    COMPREPLY=("${COMPREPLY[@]#"$head"}")
    if [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=.] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _llmtrain llmtrain"""

ZSH = r"""#compdef llmtrain
# llmtrain completion for zsh: eval "$(llmtrain --completion zsh)", after compinit
_llmtrain() {
    local -a candidates ended open
    candidates=("${(@f)$(llmtrain --complete "${(@)words[2,$CURRENT]}" 2>/dev/null)}")
    if [[ "${candidates[1]}" == ":files" ]]; then
        compset -P '*='
        _files
        return
    fi
    open=(${(M)candidates:#*[=.]})
    ended=(${candidates:#*[=.]})
    (( $#open )) && compadd -S '' -- $open
    (( $#ended )) && compadd -- $ended
}
compdef _llmtrain llmtrain"""

FISH = r"""# llmtrain completion for fish: llmtrain --completion fish | source
function __llmtrain_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l candidates (llmtrain --complete $words[2..-1] 2>/dev/null)
    if test "$candidates[1]" = ":files"
        set -l parts (string split -m 1 = -- (commandline -ct))
        for file in (__fish_complete_path $parts[2])
            echo $parts[1]=$file
        end
    else
        string join \n -- $candidates
    end
end
complete -c llmtrain -f -a '(__llmtrain_complete)'"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def complete(words: Sequence[str]) -> list[str]:
    """Return what the last of `words` may become; `words` begin after the program's name."""
    current = words[-1] if words else ""
    before = list(words[:-1])
    if before and before[-1] == "--completion":
        return _matching(SHELLS, current)
    if before and before[-1] == "--cfg":
        return _matching(("job",), current)
    if before and before[-1] == "--config-dir":
        return [FILES]
    if before and before[-1] == "--inspect":
        return _prepared(current)
    command = next((word for word in before if word in COMMANDS), None)
    if command is None:
        known = [*COMMANDS, *FLAGS] if current.startswith("-") else list(COMMANDS)
        return _matching(known, current)
    if current.startswith("-"):
        return _matching(sorted({*COMMANDS[command].flags, "--help"}), current)
    if COMMANDS[command].folders and "=" not in current:
        return [FILES]
    if not COMMANDS[command].overrides:
        return []
    dirs = [Path(value) for flag, value in itertools.pairwise(before)
            if flag == "--config-dir"]  # fmt: skip
    actions = COMMANDS[command].actions
    if actions and not set(actions) & set(before):
        return _matching(actions, current)
    root = Options(command, flags=set(before) & MODES.keys()).root
    assert root is not None
    key, equals, value = current.partition("=")
    if equals:
        return _values(root, key, value, dirs)
    return _keys(root, key, before, dirs)


def _prepared(start: str) -> list[str]:
    """Return the prepared folders of the cache; where none is meant, any folder."""
    cache = Path(os.environ.get("LLMTRAIN_CACHE") or "~/.cache/llmtrain").expanduser()
    names = (path.parent.name for path in cache.glob("*/manifest.json"))
    return _matching(sorted(names), start) or [FILES]


def _matching(known: Sequence[str], start: str) -> list[str]:
    return [word for word in known if word.startswith(start)]


def _keys(command: str, start: str, before: Sequence[str], dirs: Sequence[Path]) -> list[str]:
    """Return groups and settings; a dot opens a group's settings, so that TAB stays readable."""
    from llmtrain.commands.settings import keys

    known = groups(command, dirs)
    given = [word.partition("=") for word in before]
    chosen = {group: choice for group, equals, choice in given if equals and group in known}
    found = [f"{name}=" for name in known if "." not in start]
    for setting in keys(command, chosen, dirs):
        if setting.name.endswith(".name"):
            continue
        group, dot, _ = setting.name.partition(".")
        whole = not dot or start.startswith(f"{group}.")
        found.append(f"{setting.name}=" if whole else f"{group}.")
    return _matching(list(dict.fromkeys(found)), start)


def _values(command: str, key: str, value: str, dirs: Sequence[Path]) -> list[str]:
    """Return the choices of a group, of a switch, or files; after a comma the next of a sweep."""
    done, comma, start = value.rpartition(",")
    prefix = f"{key}={done}{comma}"
    known = groups(command, dirs)
    if key in known:
        return [prefix + choice for choice in _matching(list(known[key].choices), start)]
    if key.rpartition(".")[2] in PATHS:
        return [FILES]
    from llmtrain.commands.settings import keys

    setting = next((k for k in keys(command, config_dirs=dirs) if k.name == key), None)
    if setting is not None and setting.kind.startswith("true"):
        return [prefix + word for word in _matching(BOOLEANS, start)]
    return []
