"""Names that modules already use."""

from torch import nn

from models.names import OF_MODULE_DICT, is_taken


def test_the_list_of_names_matches_torch() -> None:
    assert {name for name in dir(nn.ModuleDict()) if not is_taken(name)} == set()
    assert {name for name in OF_MODULE_DICT if not hasattr(nn.ModuleDict(), name)} == set()
    assert not is_taken("user")
