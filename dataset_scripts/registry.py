"""The converters by the names people type."""

from .amazon import Amazon
from .base import Converter
from .kuairec import KuaiRec
from .movielens import MovieLens
from .steam import Steam
from .table import Csv, Parquet
from .yelp import Yelp


CONVERTERS: dict[str, type[Converter]] = {
    converter.name: converter for converter in (MovieLens, Amazon, Steam, Yelp, KuaiRec, Csv, Parquet)
}


def get_converter(name: str) -> type[Converter]:
    """Looks up a converter.

    Args:
        name: Such as `movielens`.

    Returns:
        The converter class; its fields are the options.

    Raises:
        ValueError: If there is none of that name; the message lists all.

    Example:
        >>> from hf_seqrec.dataset_scripts.registry import get_converter
        >>> get_converter("movielens")(edition="100k").title
        'MovieLens 100K'
    """
    if name not in CONVERTERS:
        raise ValueError(f"no converter {name!r}: choose from {', '.join(CONVERTERS)}.")
    return CONVERTERS[name]
