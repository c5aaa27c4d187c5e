"""Scores of clusters as a Markdown table, and how they are put into words."""

from typing import Any

from ssmast.evaluation.table import TITLES

CLUSTER_TITLES = {
    "adjusted_rand": "adjusted Rand",
    "homogeneity": "homogeneity",
    "completeness": "completeness",
    "adjusted_mutual_info": "adjusted mutual information",
}
SILHOUETTES = {
    ("true", "euclidean"): "silhouette, classes, Euclidean",
    ("true", "cosine"): "classes, cosine",
    ("kmeans", "euclidean"): "k-means, Euclidean",
    ("kmeans", "cosine"): "k-means, cosine",
}


def clusters_table(results: list[dict[str, Any]]) -> str:
    """Markdown of what `run_clusters` returns: one row an encoder, chance below each task."""
    lines = [
        markdown_row(["task", "encoder", *CLUSTER_TITLES.values(), *SILHOUETTES.values()]),
        markdown_row(["---"] * 2 + ["---:"] * (len(CLUSTER_TITLES) + len(SILHOUETTES))),
    ]
    for result in results:
        task = str(result["task"])
        for name, column in result["columns"].items():
            cells = [spread_text(column, key) for key in CLUSTER_TITLES]
            cells += [f"{column['silhouette'][labels][by]:.3f}" for labels, by in SILHOUETTES]
            lines.append(markdown_row([task, str(TITLES.get(name, name)), *cells]))
        first = result["columns"][result["column"]]
        chance = [f"{first['random'][key]:.3f}" for key in CLUSTER_TITLES]
        chance += [f"{first['silhouette']['random'][by]:.3f}" for _, by in SILHOUETTES]
        lines.append(markdown_row([task, "random labels", *chance]))
    return "\n".join(lines) + "\n" + "".join(f"\n{clusters_note(one)}\n" for one in results)


def clusters_note(result: dict[str, Any]) -> str:
    """What was clustered and how, in one paragraph."""
    first = result["columns"][result["column"]]
    how = {"l2": "scaled to unit length", "standard": "standardised", "raw": "as they are"}
    return (
        f"{result['task']}: {result['n']} clips ({result['part']}) of {result['num_classes']} "
        f"classes; embeddings {how[result['normalisation']]}, {first['dim']} dimensions, pooling "
        f"{result['pooling']}. k-means with {result['num_classes']} clusters from "
        f"{result['num_seeds']} beginnings, the one of least inertia counts; in brackets the least "
        "and the greatest over them. Random labels: the same partitions shuffled; homogeneity and "
        "completeness are not nought by chance."
    )


def spread_text(column: dict[str, Any], key: str) -> str:
    """`0.412 (0.380 to 0.431)`: of the best clustering, and over all seeds."""
    values = [row[key] for row in column["seeds"]]
    text = f"{column['kmeans'][key]:.3f}"
    return text if len(values) < 2 else f"{text} ({min(values):.3f} to {max(values):.3f})"


def markdown_row(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
