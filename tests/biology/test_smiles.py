"""Molecules in SMILES are read as graphs, and written in other ways."""

import random

import pytest

from src.biology.smiles import Molecule, read_smiles, without_directions, write_smiles

MOLECULES = (
    "CCO",
    "CC(=O)Oc1ccccc1C(=O)O",
    "c1(ccccc1)c1ccc(cc1)C#N",
    "C1CC2CCC1C2",
    "C=1CCCCC=1",
    "[Na+].[O-]C(=O)C",
    "N#N.O",
    "C%10CCCC%10Cl",
    "n(H)1cccc1Br",
    "C" * 3000,
)


def described(molecule: Molecule) -> list[str]:
    """The atoms with what is around them, in an order that does not depend on how the molecule was written."""
    names = list(molecule.atoms)
    for _ in range(6):
        around = [sorted(f"{bond}{names[other]}" for other, bond in bonds.items()) for bonds in molecule.bonds]
        names = [str(hash((name, *one))) for name, one in zip(names, around, strict=True)]
    return sorted(names)


@pytest.mark.parametrize("text", MOLECULES)
def test_a_molecule_that_is_written_in_another_way_is_the_same(text: str) -> None:
    molecule = read_smiles(text)
    found = {write_smiles(molecule, random.Random(seed)) for seed in range(10)}
    assert all(described(read_smiles(one)) == described(molecule) for one in found)
    assert len(found) > 1 or set(text) == {"C"}


def test_directions_are_left_out() -> None:
    assert read_smiles("N[C@@H](C)C(=O)O") == read_smiles("NC(C)C(=O)O")
    assert read_smiles("F/C=C\\F") == read_smiles("FC=CF")
    assert without_directions("F/C=C\\[C@@H](C)N") == "FC=CC(C)N"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "a bond is left open"),
        ("CC(", "a parenthesis is left open"),
        ("CC)", "')' cannot stand at position 3"),
        ("C1CC", "ring 1 is left open"),
        ("CC=", "a bond is left open"),
        ("=CC", "'=' cannot stand at position 1"),
        ("C==C", "'=' cannot stand at position 3"),
        ("CCX", "'X' cannot stand at position 3"),
        ("C C", "' ' cannot stand at position 2"),
        ("C[Na", "'[' cannot stand at position 2"),
        ("C..C", "'.' cannot stand at position 3"),
        ("C11", "position 3 binds atoms 1 and 1, which is not possible"),
        ("C1C1", "position 4 binds atoms 1 and 2, which is not possible"),
    ],
)
def test_what_is_no_smiles_is_refused_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_smiles(text)
    assert str(caught.value) == problem
