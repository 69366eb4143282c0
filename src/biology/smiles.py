"""Reads molecules in SMILES (Weininger 1988), and writes them in other ways that mean the same."""

import random
import re
from itertools import chain
from typing import NamedTuple

TOKEN = re.compile(r"\[[!-Z^-~]+\]|Br|Cl|%\d\d|.", re.DOTALL | re.ASCII)
ATOM = re.compile(r"\[.*\]|Br|Cl|[BCNOPSFIHbcnops*]")  # H without brackets is found in data
RING = re.compile(r"%?\d+", re.ASCII)
CHIRAL = re.compile(r"\[(C)@+H?\]|@+")  # such a carbon then needs no brackets
BONDS = dict(zip("-=#$:~/\\", [*"-=#$:~", "", ""], strict=True))


class Molecule(NamedTuple):
    """Atoms as they are written, and for each its bonds: how a bond is written, by the number of the other atom."""

    atoms: list[str]
    bonds: list[dict[int, str]]


def read_smiles(text: str) -> Molecule:
    """The graph of a molecule, without the directions at double bonds and chiral carbons.

    Raises:
        ValueError: it is not SMILES; the message says what is wrong.
    """
    molecule = Molecule([], [])
    branches, rings = list[int](), dict[str, tuple[int, str]]()
    last, bond, place = -1, "", 0  # the atom that the next one is bound to, if any

    def join(one: int, other: int, kind: str) -> None:
        if one == other or other in molecule.bonds[one]:
            raise ValueError(f"position {place} binds atoms {other + 1} and {one + 1}, which is not possible")
        molecule.bonds[one][other] = molecule.bonds[other][one] = kind

    for found in TOKEN.finditer(text):
        token, place, number = found[0], found.end(), len(molecule.atoms)
        if ATOM.fullmatch(token):
            molecule.atoms.append(CHIRAL.sub(r"\1", token))
            molecule.bonds.append({})
            if last >= 0:
                join(last, number, bond)
            last, bond = number, ""
        elif last >= 0 and RING.fullmatch(token):
            if token in rings:
                other, before = rings.pop(token)
                join(last, other, before or bond)
            else:
                rings[token] = (last, bond)
            bond = ""
        elif last < 0 or bond or token not in (*BONDS, *"(.", *(")" if branches else "")):
            raise ValueError(f"{token!a} cannot stand at position {place}")
        elif token == "(":
            branches.append(last)
        elif token in ").":
            last = branches.pop() if token == ")" else -1
        else:
            bond = BONDS[token]
    if rings or branches or bond or last < 0:
        raise ValueError(f"{'ring ' + min(rings) if rings else 'a parenthesis' if branches else 'a bond'} is left open")
    return molecule


def without_directions(text: str) -> str:
    """SMILES as they are written, but without the directions at double bonds and chiral carbons."""
    return re.sub(r"[/\\]", "", CHIRAL.sub(r"\1", text))


def write_smiles(molecule: Molecule, rng: random.Random) -> str:
    """The molecule, written from a random atom in a random order (Bjerrum 2017)."""
    pieces: list[list[str]] = []
    rings: dict[int, list[str]] = {}  # the piece with the ring numbers of each atom that is written
    done = set[frozenset[int]]()  # bonds that are written
    for root in rng.sample(range(len(molecule.atoms)), len(molecule.atoms)):
        if root not in rings:
            pieces.append(["."] if pieces else [])
            stack = [(root, list[str](), list[list[list[str]]]())]
        while root not in rings or stack:
            atom, end, branches = stack[-1]
            if atom not in rings:
                rings[atom] = []
                pieces += [[molecule.atoms[atom]], rings[atom]]
            left = [other for other in molecule.bonds[atom] if frozenset((atom, other)) not in done]
            if not left:
                for branch, behind in branches[:-1]:  # brackets around all but the last
                    branch.insert(0, "(")
                    behind.append(")")
                pieces.append(end)
                stack.pop()
                continue
            other = rng.choice(left)
            done.add(frozenset((atom, other)))
            bond = molecule.bonds[atom][other]
            if other in rings:
                number = sum(map(len, rings.values())) // 2 + 1
                rings[atom].append(f"{bond}{number}" if number < 10 else f"{bond}%{number}")
                rings[other].append(str(number) if number < 10 else f"%{number}")
            else:
                branches.append([[bond], []])
                pieces.append(branches[-1][0])
                stack.append((other, branches[-1][1], []))
    return "".join(chain.from_iterable(pieces))
