"""Results as a Markdown table: tasks down, columns across, means with intervals."""

from typing import Any

TITLES = {"pretrained": "pretrained", "untrained": "untrained", "log_mel": "log-mel"}


def columns_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scored columns of one result, the one asked for first."""
    return {result.get("column", "pretrained"): result, **result.get("baselines", {})}


def results_table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row a task, then the average with the differences to the first column.

    Args:
        results: what `run_suite` returns, all with the same columns.
    """
    if not results:
        return "no results\n"
    names = list(columns_of(results[0]))
    metric = results[0]["metric"].replace("_", " ")
    head = ["task", "classes", "train / valid / test", *(TITLES.get(n, n) for n in names)]
    lines = [_row(head), _row(["---"] * 3 + ["---:"] * len(names))]
    for result in results:
        counts = f"{result['n_train']} / {result['n_valid']} / {result['n_test']}"
        if len(result["splits"]) > 1:
            counts += f", {len(result['splits'])} folds"
        columns = columns_of(result)
        scores = [score_text(columns[name]) for name in names]
        lines.append(_row([result["task"], str(result["num_classes"]), counts, *scores]))
    averages = [
        sum(columns_of(result)[name]["mean"] for result in results) / len(results) for name in names
    ]
    shown = [f"{100 * averages[0]:.1f}"] + [
        f"{100 * value:.1f} ({100 * (value - averages[0]):+.1f})" for value in averages[1:]
    ]
    lines.append(_row([f"**average of {len(results)}**", "", "", *(f"**{v}**" for v in shown)]))
    first = results[0]
    note = (
        f"\nTest {metric} in %, protocol {first['protocol']}, pooling {first['pooling']}, "
        f"{first['dim']} dimensions. ± is the 95 % t interval over {len(first['scores'])} seed(s), "
        "over the folds where there are folds. In brackets: the difference to the first column.\n"
    )
    return "\n".join(lines) + "\n" + note


def score_text(column: dict[str, Any]) -> str:
    """`81.3 ± 0.4`, in percent."""
    ci95 = column["ci95"]
    return f"{100 * column['mean']:.1f}" + ("" if ci95 is None else f" ± {100 * ci95:.1f}")


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
