"""Counts and bytes for people."""


def counted(number: int, what: str) -> str:
    """Such as `1 dimension` or `1,200 dimensions`."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def size(count: int) -> str:
    """Such as `4.2 MB`."""
    value, units = float(count), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if value < 1000 or unit == units[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError
