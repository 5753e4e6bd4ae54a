"""Values for people: counts, bytes, durations, settings. Standard library only."""


def as_typed(value: object) -> str:
    """Return a setting's `value` as one types it: null, true, 3e-4, [a,b]."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def counted(count: float, one: str, many: str = "") -> str:
    """Return `count` with its noun: "1 step", "2 steps"."""
    number = f"{count:g}" if isinstance(count, float) else str(count)
    return f"{number} {one if count == 1 else many or one + 's'}"


def format_count(value: float) -> str:
    """Return `value` with a decimal suffix: 1234567 -> "1.23M"."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"


def format_bytes(value: float) -> str:
    """Return `value` bytes with a binary suffix: 1536 -> "1.5 KiB"."""
    for limit, suffix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= limit:
            return f"{value / limit:.4g} {suffix}"
    return f"{value:.0f} B"


def format_duration(seconds: float) -> str:
    """Return `seconds` as the two largest units: 3725 -> "1h02m"."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, sec = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{sec:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h"
