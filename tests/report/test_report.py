import json
import re
from html.parser import HTMLParser

import pytest

from ssmast.evaluation.results import Result, results_table
from ssmast.report import main, read_probes, write_report
from ssmast.report.curves import curves
from ssmast.report.scores import (
    MAST_TABLE,
    POSTER_TABLE,
    PUBLISHED,
    filled_table,
    published_of,
)
from ssmast.report.sources import read_sources
from ssmast.settings import UsageError


def result(**changes) -> dict:
    column = {"mean": 0.8, "ci95": 0.01, "scores": [0.79, 0.81], "dim": 320}
    return {
        "task": "tones", "metric": "accuracy", "protocol": "linear", "pooling": "mean",
        "encoder": "runs/x/encoder", "version": "0.1.0", "num_classes": 2,
        "n_train": 24, "n_valid": 12, "n_test": 12, "splits": [{"name": "split"}],
        "classes": ["cat <1>", "dog & co"], "confusion": [[90, 10], [3, 7]], "rejected": [],
        "column": "pretrained", **column,
        "baselines": {"untrained": {**column, "mean": 0.6}, "log_mel": {**column, "ci95": None}},
        **changes,
    }  # fmt: skip


def read(*contents) -> list[Result]:
    """Results as they come back from their files."""
    return [Result.from_dict(content) for content in contents]


def clusters_result(folder, clips) -> dict:
    """As `ssmast cluster` writes it: the first half of the clips in one class."""
    half, n = len(clips) // 2, len(clips)
    agreement = {"adjusted_rand": 0.5, "homogeneity": 0.6, "completeness": 0.7,
                 "adjusted_mutual_info": 0.55}  # fmt: skip
    distances = {"euclidean": 0.25, "cosine": 0.35}
    column = {
        "dim": 320, "encoder_sha256": "0", "kmeans": agreement,
        "silhouette": {"true": distances, "kmeans": distances, "random": distances},
        "random": dict.fromkeys(agreement, 0.125), "best_seed": 1, "seconds": 0.1,
        "seeds": [{"seed": s, "inertia": 2.0 - s, **agreement, "adjusted_rand": 0.4 + s / 10}
                  for s in (0, 1)],
    }  # fmt: skip
    place = {
        "x": [float(i % half) for i in range(n)], "y": [float(i // half) for i in range(n)],
        "neighbours": [[j for j in range(n) if j != i] for i in range(n)],
        "similarity": [[0.9] * (n - 1)] * n,
    }  # fmt: skip
    wide = {**place, "x": [10.0 * x - 10.0 * (half - 1) / 2 for x in place["x"]]}
    return {
        "kind": "clusters", "task": "tones", "part": "all", "n": n, "num_classes": 2,
        "classes": ["a<b>", "b & co"], "normalisation": "l2", "num_seeds": 2, "seed": 0,
        "encoder": "runs/x/encoder", "data": "sets", "version": "0.1.0", "pooling": "mean",
        "layers": "last", "column": "pretrained", "columns": {"pretrained": column},
        "rejected": [["x.wav", "x.wav is empty"]],
        "picture": {
            "n_neighbors": 15, "min_dist": 0.1, "seed": 0, "classes": ["a<b>", "b & co"],
            "clips": clips, "rows": list(range(n)), "labels": [int(i >= half) for i in range(n)],
            "num_candidates": n, "folder": str(folder),
            "columns": {"pretrained": place, "log_mel": wide},
        },
    }  # fmt: skip


def write_run(folder):
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "objective: ss_mast\nmodel: mast_nano\noptim:\n  lr: 0.001\n"
    )
    (folder / "facts.json").write_text(
        json.dumps({"data": "<script>alert(1)</script>", "clips": 7})
    )
    lines = [
        {"step": s, "loss": 5 - s / 10, "accuracy": s / 30, "rank_embedding": 20.0, "lr": 1e-3,
         "clips_per_second": 99.5, "uniformity": None if s == 10 else -2.0, "grad_norm": 1.0}
        for s in (10, 20)
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    # Damaged, no object, and cut short by a kill.
    torn = b'{"step": 2\xff}\n3\n{"step": 30, "lo'
    (folder / "metrics.jsonl").write_bytes(text.encode() + torn)
    (folder / "quarantine.csv").write_text(
        "name,reason\na.wav,a.wav is empty\nb.wav,b.wav is empty\nc.mp3,c.mp3 is no audio\n"
    )
    return folder


class Checker(HTMLParser):
    """Every tag closed, nothing loaded from anywhere."""

    void = frozenset({"meta", "br", "path", "use", "rect", "image", "link"})

    def __init__(self):
        super().__init__()
        self.open, self.words = [], []

    def handle_starttag(self, tag, attrs):
        assert tag not in {"script", "link", "img", "iframe"}
        for name, value in attrs:
            if name in {"src", "href", "xlink:href"}:
                assert (value or "").startswith("#")
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def check(page: str) -> str:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert "url(" not in page.replace("url(#", "")
    addresses = set(re.findall(r"https?://[^\"' )]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    return " ".join(" ".join(checker.words).split())


def test_the_page_tells_the_run_and_loads_nothing(tmp_path):
    run = write_run(tmp_path / "run")
    out = tmp_path / "out" / "report.html"
    page = write_report(out, run=run, results=read(result())).read_text()
    words = check(page)
    for part in (
        "Run run", "pretrained 80.0 ± 1.0", "untrained 60.0 ± 1.0", "log-mel 80.0",
        "InfoNCE loss (nats)", "effective rank of the embeddings", "clips a second",
        "gradient norm",
        "optim.lr 0.001", "3 clips.", "2 is empty", "b.wav",
        "dog & co cat <1> 30 %", "<script>alert(1)</script>", "ssmast probe encoder=runs/x/encoder",
    ):  # fmt: skip
        assert part in words, part
    assert page.count("<svg") == 7
    assert "prefers-color-scheme: dark" in page
    assert "#010203" not in page  # every stand-in colour was replaced
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "report.html"]


def test_a_run_that_has_barely_begun_has_a_page_too(tmp_path):
    (tmp_path / "run").mkdir()
    words = check(write_report(tmp_path / "r.html", run=tmp_path / "run").read_text())
    assert "every clip that was asked for could be read" in words


def test_results_in_the_run_folder_are_found(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "probe").mkdir()
    (run / "probe" / "tones.linear.json").write_text(json.dumps(result()))
    (run / "probe" / "broken.json").write_text("{")
    (run / "probe" / "other.json").write_text('{"a": 1}')
    assert main([f"run={run}"]) == 0
    assert "tones" in check((run / "report.html").read_text())
    assert main([f"results={run / 'probe'}", f"out={tmp_path / 'scores.html'}"]) == 0
    assert "80.0 ± 1.0" in check((tmp_path / "scores.html").read_text())


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(UsageError, match="name a run or results"):
        main([])
    with pytest.raises(FileNotFoundError, match="no folder at run="):
        main([f"run={tmp_path / 'none'}"])
    with pytest.raises(FileNotFoundError, match="no run or result at"):
        main([str(tmp_path / "none")])
    with pytest.raises(FileNotFoundError, match=r"neither a run .* nor a result"):
        main([f"results={tmp_path}"])
    with pytest.raises(UsageError, match="audio_mb must be at least 0"):
        main([str(tmp_path), "audio_mb=-1"])
    assert read_probes(tmp_path / "none") == []


def test_runs_and_results_named_together_stand_side_by_side(tmp_path):
    run, earlier = write_run(tmp_path / "run"), write_run(tmp_path / "earlier")
    results = tmp_path / "results"
    results.mkdir()
    for name, encoder, mean in (("a", run / "encoder", 0.8), ("b", "log_mel", 0.4)):
        content = result(encoder=str(encoder), mean=mean)
        (results / f"{name}.json").write_text(json.dumps(content))
    (run / "encoder").mkdir()
    one = tmp_path / "one.json"
    one.write_text(json.dumps(result(encoder="other/encoder", mean=0.7, ids_sha256="x")))
    sources = read_sources([run, earlier, results, one])
    assert [source.name for source in sources] == ["run", "earlier", "log_mel", "other/encoder"]
    assert [len(source.probes) for source in sources] == [1, 0, 1, 1]
    assert main([str(run), str(earlier), str(results), str(one)]) == 0
    page = (run / "report.html").read_text()
    words = check(page)
    assert "run 80.0 ± 1.0" in words
    assert "log-mel 80.0 log_mel 40.0 ± 1.0" in words
    assert "other/encoder 70.0 ± 1.0 other clips" in words
    assert "━ run ━ earlier" in words
    pictures = page.split("<svg")[1:]
    assert len(pictures) == 7
    assert all("var(--fourth)" in one for one in pictures)  # the earlier run's curve
    assert f"ssmast report {run} {earlier} {results} {one}" in words


def test_folders_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    runs = [write_run(tmp_path / letter / "run") for letter in "ab"]
    assert [source.name for source in read_sources(runs)] == ["a/run", "b/run"]
    assert len(read_sources([runs[0], runs[0]])) == 1


def test_published_rows_stand_beside_the_data_set_they_are_of(tmp_path):
    words = check(write_report(tmp_path / "r.html", results=read(result(task="esc50"))).read_text())
    assert "M2D/0.6 91.6 frozen, EVAR's linear layer; M2D-CLAP, table 3" in words
    assert "Hollow dots are published scores by another protocol" in words
    built = result(task="mine", built={"task": "urbansound8k"})
    assert "MAST, ImageNet + SS-MAST + patch-drop 84.8" in check(
        write_report(tmp_path / "r.html", results=read(built)).read_text()
    )
    assert published_of("esc50:label=speaker", "", "accuracy") == []
    assert published_of("fsd50k", "", "accuracy") == []
    assert len(published_of("fsd50k", "", "map")) == 2
    assert all(row.source and row.protocol and 0 < row.percent < 100 for row in PUBLISHED)


def test_the_posters_numbers_are_the_posters():
    rows = {row.task: row.percent / 100 for row in PUBLISHED if "patch-drop" in row.name}
    assert rows == pytest.approx(
        {
            "speech_commands_v1": 0.974, "speech_commands_v2_12": 0.968,
            "speech_commands_v2": 0.966, "voxceleb1": 0.573, "iemocap": 0.644,
            "voxforge": 0.900, "nsynth_family": 0.812, "urbansound8k": 0.848,
        }
    )  # fmt: skip


def test_several_labels_a_clip_have_no_chance_mark_and_no_confusion(tmp_path):
    several = result(task="fsd50k", metric="map", mean=0.31)
    del several["confusion"]
    page = write_report(tmp_path / "r.html", results=read(several)).read_text()
    words = check(page)
    assert "mAP, protocol linear pretrained 31.0 ± 1.0" in words
    assert "MW-MAE-B 51.2" in words
    assert "mistaken" not in words
    assert "<s style" not in page


def test_results_of_other_commands_and_protocols_are_told_for_what_they_are(tmp_path):
    run = write_run(tmp_path / "run")
    tuned = result(protocol="fine-tuned", column="fine-tuned", ci95=None, chance=0.25, baselines={})
    for key in ("dim", "pooling"):
        del tuned[key]
    (run / "test.json").write_text(json.dumps(tuned))
    other = result(protocol="lape_finetune", shuffled=True)
    other["baselines"]["log_mel"]["fitted_by"] = "linear"
    (run / "probe").mkdir()
    (run / "probe" / "a.json").write_text(json.dumps(other))
    assert main([str(run)]) == 0
    page = (run / "report.html").read_text()
    words = check(page)
    assert "24 / 12 / 12 clips; accuracy, protocol fine-tuned fine-tuned 80.0" in words
    assert "labels shuffled; 320 dimensions, pooling mean; accuracy, protocol lape_" in words
    assert "log-mel 80.0 protocol linear" in words
    assert 'left:25.00%"></s>' in page
    assert words.count("ssmast probe ") == 1


def test_the_page_of_a_fine_tuning_leads_with_its_test_and_says_what_was_kept(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text("model: mast_nano\nheads:\n  probe: true\ninit: enc\n")
    lines = [
        {"step": s, "loss": 2.0, "valid/accuracy": 0.5 + s / 100, "valid/n": 12} for s in (0, 10)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tuned = result(
        protocol="fine-tuned", column="fine-tuned", ci95=None, baselines={}, n=12, valid=0.75,
        chosen=[{"split": "split", "step": 0}],
    )  # fmt: skip
    for key in ("dim", "pooling"):
        del tuned[key]
    (run / "test.json").write_text(json.dumps(tuned))
    (run / "views.png").write_bytes(b"png")
    assert main([str(run)]) == 0
    page = (run / "report.html").read_text()
    words = check(re.sub("<img[^>]*>", "", page))
    assert words.index("test accuracy 80.0 %") < words.index("steps 10")
    assert "validation accuracy 75.0 %" in words
    assert "weights kept from step 0" in words
    assert "The weights of step 0 (the linear probe of the frozen encoder, before" in words
    assert "best by accuracy on the 12 clips of the validation part" in words
    assert "each segment as it is cut from its clip, and as the network is fed it" in words
    assert "InfoNCE" not in words
    assert "trained by fine-tuning on" in words
    shown, *_ = page.partition("More curves")
    assert "validation: accuracy" in shown
    assert "validation: n" not in page
    assert "ssmast finetune recipe=" in words


def test_an_objective_of_ones_own_is_named_and_nothing_claimed_of_it(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text("objective: Mine\nmodel: mast_nano\n")
    words = check(write_report(tmp_path / "r.html", run=run).read_text())
    assert "mast_nano, trained by Mine on 7 clips" in words
    assert "InfoNCE" not in words
    assert "negatives" not in words
    (run / "config.yaml").write_text("model: mast_nano\n")  # neither key
    words = check(write_report(tmp_path / "r.html", run=run).read_text())
    assert "mast_nano, trained on 7 clips" in words
    (run / "config.yaml").write_text("method: ssast\nmodel: mast_nano\n")  # of version 0.1.0
    words = check(write_report(tmp_path / "r.html", run=run).read_text())
    assert "mast_nano, trained by SSAST on 7 clips" in words
    assert "ssmast pretrain recipe=" in words


def test_a_run_in_progress_has_a_page(tmp_path):
    run = write_run(tmp_path / "run")
    assert not (run / "encoder").exists()
    assert main([str(run)]) == 0
    assert "steps 20 loss 3" in check((run / "report.html").read_text())


def test_clusters_stand_with_their_spread_and_chance(tmp_path):
    content = clusters_result(tmp_path / "gone", ["a.wav", "b.wav", "</script><b>.wav", "d.wav"])
    file = tmp_path / "tones.clusters.json"
    file.write_text(json.dumps(content))
    assert main([str(file)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "0.500 (0.400 to 0.500)" in page
    assert "0.125" in page
    assert "homogeneity and completeness are above 0 by chance" in page
    assert page.count("</script>") == 3  # the data, Bokeh's and ours: no name ended one
    assert "0 clips inside this page (their first 5 s), 0 linked, 4 without (`audio_mb=`" in page
    assert "ssmast cluster tones encoder=runs/x/encoder data=sets part=all" in page
    del content["picture"]
    file.write_text(json.dumps({**content, "task": "vggsound"}))
    assert main([str(file)]) == 0
    words = check((tmp_path / "report.html").read_text())
    assert "MAST: Zhu &amp; Omar" not in words
    assert "MAST: Zhu & Omar 2023" in words
    assert "0.375 0.720" in words


def test_labels_of_any_script_are_fine(tmp_path):
    strange = result(task="$x_{1}$ 音楽", classes=["$\\alpha$", "音"])
    words = check(write_report(tmp_path / "r.html", results=read(strange)).read_text())
    assert "$x_{1}$ 音楽" in words


def test_many_classes_show_pairs_without_the_matrix(tmp_path):
    confusion = [[5 if i == j else int(j == i + 1) for j in range(60)] for i in range(60)]
    many = result(classes=[f"c{i}" for i in range(60)], confusion=confusion, num_classes=60)
    page = write_report(tmp_path / "r.html", results=read(many)).read_text()
    assert "c0 c1 17 %" in check(page)
    assert '<table class="matrix">' not in page


def test_scores_while_training_are_drawn_with_the_lines_to_compare_them_with():
    rows = [
        {
            "step": s,
            "probe/tones/knn": 0.4 + s / 100,
            "probe/tones/chance": 0.33,
            "probe/seconds": 1,
        }
        for s in (0, 10, 20)
    ]
    [(title, svg, is_main)] = curves(rows)
    assert title == "tones: nearest neighbours while training (accuracy)"
    assert is_main
    assert ">untrained<" in svg
    assert ">chance<" in svg
    [(_, late, _)] = curves(rows[1:])  # without a score of the untrained encoder, no such line
    assert ">untrained<" not in late


def test_the_loss_is_drawn_with_the_loss_of_guessing():
    [(title, svg, _)] = curves([{"step": 1, "loss": 9.0, "chance_loss": 9.4}])
    assert title == "loss"
    assert ">guessing<" in svg


def test_a_curve_tells_the_values_of_each_step_to_a_pointer():
    rows = [{"step": step, "loss": 9 - step / 100} for step in range(0, 500, 10)]
    [(_, svg, _)] = curves(rows, others=[rows[:3]])
    bands = re.findall(r'x="([\d.]+)" y="0" width="([\d.]+)" .*?><title>(.*?)</title>', svg)
    assert [said for _, _, said in bands[1:4]] == [
        *("step 10: 8.9, 8.9", "step 20: 8.8, 8.8", "step 30: 8.7, \u2013"),
    ]
    assert len(bands) == len(rows)
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    ends = [float(x) + float(size) for x, size, _ in bands]  # without gaps, from edge to edge
    assert float(bands[0][0]) == 0
    assert ends[-1] == pytest.approx(width, abs=0.2)
    starts = [float(x) for x, _, _ in bands[1:]]
    assert starts == pytest.approx(ends[:-1], abs=0.11)
    many = [{"step": step, "loss": 1.0} for step in range(5000)]
    [(_, svg, _)] = curves(many)
    assert svg.count("<title>") <= 120
    assert "step 4999: 1" in svg


def test_alarms_stand_above_the_curves(tmp_path):
    run = write_run(tmp_path / "run")
    line = {"step": 30, "loss": 9.0, "alarms": {"learning_rate": "weights <far> away: lower it"}}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({**line, "step": 40}))
    words = check(write_report(tmp_path / "r.html", run=run).read_text())
    assert "Alarm learning rate , steps 30 to 40 (2 lines of the log): weights <far> away" in words


def test_curves_skip_what_is_no_number():
    rows = [{"step": 1, "loss": float("nan"), "skipped": True, "note": "x"}, {"step": 2, "loss": 1}]
    assert [title for title, _, _ in curves(rows)] == ["loss"]
    assert curves([]) == []


def test_the_table_gives_differences_to_the_first_column():
    table = results_table(read(result(), result(task="b|c", mean=0.6)))
    assert "| tones | 2 | 24 / 12 / 12 | 80.0 ± 1.0 | 60.0 ± 1.0 | 80.0 |" in table
    assert "b\\|c" in table
    averages = "**70.0** | **60.0 (-10.0)** | **80.0 (+10.0)** |"
    assert f"| **average of 2 tasks** |  |  | {averages}" in table
    [folds] = read(result(splits=[{"name": "1"}] * 5))
    assert "24 / 12 / 12, 5 folds" in results_table([folds])
    assert results_table([]) == "no results\n"


def test_what_took_no_part_is_on_terminal_and_page(tmp_path):
    counts = {"empty label": 15, "empty split": 0}
    some = result(left_out=counts, rejected=[["a.wav", "a.wav is empty"]])
    said = "left out: 15 clips (empty label), 1 clip (unreadable)"
    assert f"tones: {said}.\n" in results_table(read(some))
    words = write_report(tmp_path / "r.html", results=read(some)).read_text()
    assert said in words
    assert "tones: 15 rows of the set (empty label)." in words
    assert "every clip that was asked for" not in words
    clusters = clusters_result(tmp_path, ["a", "b"]) | {"left_out": counts, "picture": None}
    (tmp_path / "c.json").write_text(json.dumps(clusters))
    assert main([str(tmp_path / "c.json")]) == 0
    assert "Left out: 15 clips (empty label), 1 clip" in (tmp_path / "report.html").read_text()


def test_classes_without_training_or_test_clips_are_on_terminal_and_page(tmp_path):
    some = result(untrained={"noise": 15, "eel": 0}, untested=["dog & co", "eel"], num_unseen=15)
    words = write_report(tmp_path / "r.html", results=read(some)).read_text()
    table = results_table(read(some))
    untrained = "classes without a training clip: noise (15 test clips, which count as wrong), eel"
    assert f"tones: {untrained} (nor others).\n" in table
    assert untrained in words
    assert "tones: classes without a test clip: dog & co.\n" in table
    assert "classes without a test clip: dog &amp; co" in words


def test_a_published_table_gets_ones_own_row_and_marks_what_is_not_there():
    numbers = {"verb_accuracy": 0.5, "noun_accuracy": None, "action_accuracy": 0.25}
    epic = result(
        task="mine", built={"task": "epic_kitchens_verb"}, metric="action_accuracy", mean=0.25,
        ci95=None, numbers=numbers, protocol="fine-tuned",
    )  # fmt: skip
    speaker = result(task="vggsound:label=speaker")  # another question to the same clips
    text = filled_table(MAST_TABLE, {"here": read(epic, speaker)})
    *_, row = (line for line in text.splitlines() if line.startswith("|"))
    absent = ["absent"] * 4
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["here", *absent, "50.0", "", "25.0", "absent", "absent"]
    assert "Own rows: protocol fine-tuned" in text
    for table in (MAST_TABLE, POSTER_TABLE):
        assert {len(numbers) for numbers in table.rows.values()} == {len(table.columns)}
    assert len(POSTER_TABLE.rows) == len(POSTER_TABLE.columns) == 8
    assert POSTER_TABLE.rows["MAST, random"][-1] == 54.4
    assert len(published_of("vggsound", "", "accuracy")) == 4
    assert published_of("vggsound", "", "accuracy")[0].name == "Chen et al."


def test_the_page_shows_the_tables_that_a_result_belongs_to(tmp_path):
    page = write_report(tmp_path / "a.html", results=read(result(task="nsynth_family")))
    text = page.read_text()
    assert "The SS-MAST poster" in text
    assert "tables 2 to 5" not in text
    assert "MAST, ImageNet + SS-MAST + patch-drop" in text
    page = write_report(tmp_path / "b.html", results=read(result()))
    assert "Published tables" not in page.read_text()
