"""Run recipes: one claim each, re-run in minutes on a drawn set and measured on real faces.

    python -m recipes.run [NAME ...]                          drawn set: twice, on 1 and on 2 workers; checks losses
    python -m recipes.run [NAME ...] --faces FACES --out OUT  real faces: train, evaluate, print tables

FACES holds celeba_wild, celeba_small, glint_deep and lfw_pairs. The command may be interrupted and started again, which
resumes the runs; several may share OUT, and each takes another recipe and seed. --record writes the results into the
recipes' files. Results are read from OUT, also those of runs that are still going on.
"""

import argparse
import sys
from pathlib import Path

from recipes.drawn import run_drawn
from recipes.faces import missing, run_faces, staged
from recipes.recipe import load, names, record, results, table


def main() -> int:
    """Run what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="recipes (default: all), and config keys KEY=VALUE of every stage")
    parser.add_argument("--faces", type=Path, help="folder of the real faces")
    parser.add_argument("--out", type=Path, help="folder of the runs on real faces")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the runs on real faces")
    parser.add_argument("--missing", action="store_true", help="leave out what the recipes' files have recorded")
    parser.add_argument("--record", action="store_true", help="write the results into the recipes' files")
    parser.add_argument("--list", action="store_true", help="print the recipes and their tables so far; run nothing")
    given = parser.parse_args()
    overrides = [name for name in given.names if "=" in name]
    try:
        recipes = [load(name) for name in given.names if "=" not in name] or [load(name) for name in names()]
    except ValueError as error:
        parser.error(str(error))
    if (given.faces is None) != (given.out is None) and not given.list:
        parser.error("--faces, --out: one is missing: give both, or none for the drawn set")
    if given.faces is None and not given.list:
        return int(not run_drawn(recipes, recording=given.record))
    complete = True
    for seed, recipe in [] if given.list else [(seed, recipe) for seed in given.seeds for recipe in recipes]:
        stages = missing(recipe, seed) if given.missing else staged(recipe)
        complete &= not stages or run_faces(recipe, stages, seed, given.faces, given.out, overrides)
    for recipe in recipes:
        print(f"\n{recipe.name}: {recipe.title}\n\n{table(recipe, given.out)}")
        if given.record:
            record(recipe, losses=recipe.losses, measured=[each.as_dict() for each in results(recipe, given.out)])
    return int(not complete)


if __name__ == "__main__":
    sys.exit(main())
