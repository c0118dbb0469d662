"""Make text from files and users safe to show on a terminal."""


def printable(value: object, length: int = 500) -> str:
    """Return a text from a file, or any value, so that it can be shown on a terminal.

    Control characters, which could move the cursor or hide what follows, are escaped.

    Args:
        value: What to show.
        length: Number of characters after which the text is cut off.
    """
    text = value if isinstance(value, str) else str(value)
    shown = ''.join(
        sign if sign.isprintable() else sign.encode('unicode_escape').decode()
        for sign in text[: length + 1]
    )
    return shown if len(text) <= length else f'{shown[:length]}...'


def escaped(message: str) -> str:
    """Return a message of one or more lines, made safe to show on a terminal."""
    lines = message.expandtabs(4).split('\n')
    return '\n'.join(printable(line, len(line)) for line in lines)
