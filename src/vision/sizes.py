"""Argument checks shared by the image networks."""


def check_sizes(net: str, dropout: float = 0.0, **sizes: int) -> None:
    """Raise ValueError if a size is below 1 or dropout is not in [0, 1)."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} {value} is too small for {net}: give at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout} is out of range for {net}: give a probability of at least 0 and below 1")
