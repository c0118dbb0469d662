"""The commands that show what runs did: report and compare."""

from pathlib import Path


def report(run: str, weights: str | None = None) -> None:
    """Write a page about a run into its folder, report.html.

    The page loads nothing from elsewhere, and can be sent, printed and read on a phone.
    It shows what the folder has: recipe, curves, features before and after, pictures,
    the change of each block, cost, fingerprints and licences. This also works for a run
    that is still going.

    Args:
        run: The folder of the run (trainer.default_root_dir).
        weights: Weights of the base, a file or the name of published weights, for the
            change of each block relative to it.
    """
    from torchgeo_explora.report import report_run

    path, problems = report_run(run, weights)
    for problem in problems:
        print(f'note: {problem}')
    print(f'wrote {path} ({path.stat().st_size / 1e6:.2f} MB)')


def compare(runs: list[str], output: str = 'comparison.html') -> None:
    """Write a page and a table of several runs side by side.

    They show the settings that differ, the measures before, after and at their best,
    and the cost. The page also has the curves.

    Args:
        runs: Folders of runs.
        output: The page, *.html; the table goes beside it as *.csv.
    """
    from torchgeo_explora.report import compare_runs

    compare_runs(runs, output)
    print(f'wrote {output} and {Path(output).with_suffix(".csv")}')
