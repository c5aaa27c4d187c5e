import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ssmast import __version__
from ssmast.audio import AudioError
from ssmast.doctor.sounds import check_sounds
from ssmast.evaluation import embed, scorer, suite
from ssmast.evaluation.results import check_results
from ssmast.evaluation.suite import ProbeConfig, main, out_folder
from ssmast.settings import UsageError
from tests.sets import write_set


def run_suite(config):
    """What the JSON files hold."""
    return [result.to_dict() for result in suite.run_suite(config)]


def test_results_of_every_task_stand_in_files_and_in_the_table(
    sets, encoder_folder, tmp_path, capsys
):
    words = [f"encoder={encoder_folder}", f"data={sets}", f"out={tmp_path}", "seeds=2"]
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "| task | classes | train / valid / test | pretrained | untrained | log-mel |" in table
    assert (tmp_path / "results.md").read_text() == table
    assert (tmp_path / "report.html").is_file()
    result = json.loads((tmp_path / "tones.linear.json").read_text())
    wanted = {
        "task": "tones", "protocol": "linear", "metric": "accuracy", "n_train": 24, "n_valid": 12,
        "n_test": 12, "num_classes": 3, "pooling": "freq+max", "layers": "last", "dim": 320,
        "column": "pretrained", "rejected": [], "version": __version__,
    }  # fmt: skip
    assert {key: result[key] for key in wanted} == wanted
    assert len(result["scores"]) == 2
    assert len(result["ids_sha256"]) == 64
    sums = json.loads((encoder_folder / "checksums.json").read_text())
    assert result["encoder_sha256"] == sums["model.safetensors"]
    assert set(result["chosen"][0]) == {"split", "lr", "C", "epoch"}
    assert set(result["baselines"]) == {"untrained", "log_mel"}
    assert result["baselines"]["log_mel"]["mean"] > 0.9  # tones are easy
    average = (
        result["mean"] + json.loads((tmp_path / "more_tones.linear.json").read_text())["mean"]
    ) / 2
    assert f"| **average of 2 tasks** |  |  | **{100 * average:.1f}** |" in table


def test_what_is_done_is_not_done_again(sets, tmp_path, caplog):
    config = ProbeConfig(
        encoder="log_mel", data=str(sets), out=str(tmp_path), seeds=2, tasks="tones"
    )
    first = run_suite(config)
    with caplog.at_level(logging.INFO):
        second = run_suite(config)
    assert "done before" in caplog.text
    assert first == second
    file = tmp_path / "tones.linear.json"
    before = file.stat().st_mtime_ns
    config = replace(config, seeds=3)
    third = run_suite(config)
    assert file.stat().st_mtime_ns > before
    assert len(third[0]["scores"]) == 3
    file.write_text("{")  # cut short by a full disk
    assert run_suite(config)[0]["mean"] == third[0]["mean"]


def test_two_at_one_place_do_not_mix_their_parts(sets, encoder_folder, tmp_path, monkeypatch):
    """The second one does all its work in the middle of the first; no lock is needed."""

    def config(tasks, out):
        return ProbeConfig(
            encoder=str(encoder_folder), data=str(sets), out=str(out), seeds=1, tasks=tasks
        )

    def told(results):
        return [
            {key: one[key] for key in ("task", "scores", "confusion", "chosen")} for one in results
        ]

    apart = {name: told(run_suite(config(name, tmp_path / name))) for name in ("all", "tones")}
    score, inside = scorer.Scorer.score, []

    def interrupted(self, job, **words):
        if not inside:
            inside.append(None)
            inside[0] = told(run_suite(config("tones", tmp_path / "both")))
        return score(self, job, **words)

    monkeypatch.setattr(scorer.Scorer, "score", interrupted)
    assert told(run_suite(config("all", tmp_path / "both"))) == apart["all"]
    assert inside[0] == apart["tones"]
    written = [json.loads(file.read_text()) for file in sorted((tmp_path / "both").glob("*.json"))]
    assert told(written) == apart["all"]
    assert "more_tones" in (tmp_path / "both" / "results.md").read_text()


def test_a_result_that_is_not_ours_is_not_replaced(sets, tmp_path):
    file = tmp_path / "tones.linear.json"
    file.write_text('{"thesis": 1}')
    config = ProbeConfig(encoder="log_mel", data=str(sets), out=str(tmp_path), tasks="tones")
    with pytest.raises(FileExistsError, match="was not written by this command, and is not"):
        run_suite(config)
    assert file.read_text() == '{"thesis": 1}'
    assert [path.name for path in tmp_path.iterdir()] == ["tones.linear.json"]


def test_a_result_of_another_encoder_is_not_replaced(sets, encoder_folder, tmp_path):
    words = {"data": str(sets), "tasks": "tones", "out": str(tmp_path / "out"), "seeds": 1}
    run_suite(ProbeConfig(encoder="log_mel", **words))
    before = (tmp_path / "out" / "tones.linear.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"is the result of encoder=log_mel, .* another out="):
        run_suite(ProbeConfig(encoder=str(encoder_folder), **words))
    assert (tmp_path / "out" / "tones.linear.json").read_bytes() == before
    # A folder that was renamed since may be this one.
    moved = before.replace(b'"encoder": "log_mel"', b'"encoder": "gone/encoder"')
    (tmp_path / "out" / "tones.linear.json").write_bytes(moved)
    check_results(tmp_path / "out" / "tones.linear.json", encoder=str(encoder_folder))
    here = moved.replace(b"gone/encoder", str(encoder_folder).encode())
    (tmp_path / "out" / "tones.linear.json").write_bytes(here)
    check_results(tmp_path / "out" / "tones.linear.json", encoder=f"{encoder_folder}/.")


def test_another_recording_of_the_same_clips_is_scored_anew(tmp_path):
    """Names, sizes, labels and parts are the same; only the samples tell noise from tones."""
    clean = write_set(tmp_path / "clean" / "tones")
    noisy = tmp_path / "noisy" / "tones"
    shutil.copytree(clean, noisy)
    rng = np.random.default_rng(0)
    for file in noisy.glob("*.wav"):
        data = bytearray(file.read_bytes())
        data[44:] = rng.bytes(len(data) - 44)
        file.write_bytes(data)

    def score(data):
        config = ProbeConfig(encoder="log_mel", data=str(data), out=str(tmp_path / "out"), seeds=1)
        return run_suite(config)[0]["mean"]

    assert score(clean.parent) == 1.0
    assert score(noisy.parent) < 0.8
    assert score(clean.parent) == 1.0
    shutil.copytree(noisy, clean, dirs_exist_ok=True)  # in their place: only the times tell
    assert score(clean.parent) < 0.8


def test_a_result_without_some_clips_stands_until_they_can_be_read(tmp_path, monkeypatch, caplog):
    write_set(tmp_path / "sets" / "tones", bad=1)
    broken = {"005.wav"}
    for module in (embed, scorer):
        opener = "open_audio" if module is embed else "read_audio"
        real = getattr(module, opener)

        def read(source, *, real=real, **options):
            if options["name"] in broken:
                raise AudioError("the disk is away")
            return real(source, **options)

        monkeypatch.setattr(module, opener, read)
    config = ProbeConfig(
        encoder="log_mel", data=str(tmp_path / "sets"), out=str(tmp_path / "out"), seeds=1
    )
    assert [name for name, _ in run_suite(config)[0]["rejected"]] == ["005.wav", "047.wav"]
    with caplog.at_level(logging.INFO):
        run_suite(config)
        assert "done before" in caplog.text
        broken.clear()
        caplog.clear()
        assert [name for name, _ in run_suite(config)[0]["rejected"]] == ["047.wav"]
        assert "done before" not in caplog.text


def test_columns_and_protocols_have_files_of_their_own(sets, tmp_path):
    tasks = "[tones:label=speaker,protocol=folds,tones:protocol=leave_one_out:speaker]"
    for protocol in ("knn", "logreg"):
        run_suite(
            ProbeConfig(
                encoder="log_mel", data=str(sets), out=str(tmp_path), tasks=tasks, protocol=protocol
            )
        )
    names = sorted(file.name for file in tmp_path.glob("*.json"))
    assert names == [
        "tones-label-speaker-protocol-folds.knn.json",
        "tones-label-speaker-protocol-folds.logreg.json",
        "tones-protocol-leave_one_out-speaker.knn.json",
        "tones-protocol-leave_one_out-speaker.logreg.json",
    ]
    result = json.loads((tmp_path / names[2]).read_text())
    assert [part["name"] for part in result["splits"]] == [f"left out s{i}" for i in range(4)]
    assert result["n_test"] == 48
    assert "confusion" in result


def test_a_test_clip_that_was_trained_on_under_another_name_is_said(
    encoder_folder, tmp_path, capsys
):
    data = write_set(tmp_path / "tones")
    (data / "copy.wav").write_bytes((data / "000.wav").read_bytes())
    (data / "also.wav").write_bytes((data / "003.wav").read_bytes())
    with (data / "metadata.csv").open("a") as file:
        # 003 trains too: a copy in the same part is no test of anything
        file.write("copy.wav,low,test,1,s1\nalso.wav,low,train,1,s1\n")
    words = [f"encoder={encoder_folder}", f"data={data}", f"out={tmp_path / 'p'}"]
    assert main([*words, "baselines=false", "seeds=1"]) == 0
    said = "1 test clip has the bytes of a clip of another part (copy.wav those of 000.wav)"
    assert said in capsys.readouterr().out
    (file,) = (tmp_path / "p").glob("*.linear.json")
    assert json.loads(file.read_text())["shared"] == {"copy.wav": "000.wav"}
    finding = [one.text for one in check_sounds(str(data)) if one.area == "problems"]
    assert any(said in text for text in finding)


def test_unreadable_clips_are_left_out_of_all_columns(encoder_folder, tmp_path, caplog):
    write_set(tmp_path / "data" / "tones", bad=1)
    (result,) = run_suite(
        ProbeConfig(
            encoder=str(encoder_folder),
            data=str(tmp_path / "data"),
            out=str(tmp_path / "out"),
            protocol="knn",
        )
    )
    assert result["left_out"] == {"unreadable": 1}
    assert result["rejected"][0][0] == "047.wav"
    assert result["n_train"] + result["n_valid"] + result["n_test"] == 47
    assert "1 clips are left out" in caplog.text
    assert "047.wav" in (tmp_path / "out" / "report.html").read_text()


def test_pooling_can_be_another_than_the_folders(sets, encoder_folder, tmp_path):
    config = ProbeConfig(
        encoder=str(encoder_folder), data=str(sets), out=str(tmp_path), tasks="tones",
        protocol="knn", pooling="mean", layers="stages", baselines="false",
    )  # fmt: skip
    (result,) = run_suite(config)
    assert (result["pooling"], result["layers"], result["dim"]) == ("mean", "stages", 120)
    assert result["baselines"] == {}
    config = replace(config, pooling="sum")
    with pytest.raises(ValueError, match="pooling must be mean"):
        run_suite(config)


def test_a_dry_run_names_the_tasks_and_embeds_nothing(sets, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["encoder=log_mel", f"data={sets}", "tasks=tones", "--dry-run"]
    assert main(words) == 0
    assert capsys.readouterr().out == "tones: 3 classes, train/valid/test 24/12/12\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["encoder=log_mel"], "data= is missing"),
        (["data={sets}", "encoder=log_mel", "protocol=svm"], "protocol must be one of linear"),
        (["data={sets}", "encoder=log_mel", "metric=f1"], "metric must be one of accuracy"),
        (["data={sets}", "encoder=log_mel", "seeds=-1"], "seeds must be at least 0"),
        (["data={sets}", "encoder=log_mel", "tasks=[]"], "names no task"),
        (["encodr=log_mel"], "did you mean 'encoder'"),
    ],
)
def test_a_wrong_command_is_a_usage_error(sets, words, sentence):
    with pytest.raises(UsageError, match=sentence):
        main([word.format(sets=sets) for word in words])


def test_missing_things_are_named(sets, tmp_path):
    with pytest.raises(FileNotFoundError, match="no encoder folder at"):
        main([f"encoder={tmp_path / 'none'}", f"data={sets}"])
    with pytest.raises(FileNotFoundError, match="no labelled set 'cats' in"):
        main(["encoder=log_mel", f"data={sets}", "tasks=cats"])


def test_results_go_beside_the_encoder_by_default(encoder_folder):
    config = ProbeConfig(encoder=str(encoder_folder), data="x")
    assert out_folder(config) == encoder_folder.parent / "probe"
    assert str(out_folder(ProbeConfig(encoder="log_mel"))) == "probe"
    assert str(out_folder(ProbeConfig(encoder="log_mel", out="here"))) == "here"


def test_many_classes_leave_the_confusion_out(tmp_path, sets, monkeypatch):
    monkeypatch.setattr("ssmast.evaluation.scorer.MOST_CLASSES_SHOWN", 2)
    (result,) = run_suite(
        ProbeConfig(
            encoder="log_mel", data=str(sets), out=str(tmp_path), tasks="tones", protocol="knn"
        )
    )
    assert "confusion" not in result


@pytest.mark.parametrize("protocol", ["linear", "logreg", "knn"])
def test_shuffled_labels_land_at_chance(tmp_path, protocol):
    write_set(tmp_path / "data" / "tones", num_clips=600, seconds=0.05)
    config = ProbeConfig(
        encoder="log_mel", data=str(tmp_path / "data"), out=str(tmp_path), protocol=protocol
    )
    (honest,) = run_suite(config)
    config = replace(config, shuffled=True)
    (control,) = run_suite(config)
    assert honest["mean"] > 0.95
    # Three standard errors of 150 test clips, three classes
    assert control["mean"] == pytest.approx(1 / 3, abs=0.12)
    assert control["chance"] == pytest.approx(1 / 3, abs=0.06)
    assert (control["shuffled"], honest["shuffled"]) == (True, False)
    assert control["ids_sha256"] == honest["ids_sha256"]
    assert (tmp_path / f"tones.{protocol}-shuffled.json").is_file()
    assert "tones, shuffled labels" in (tmp_path / "results.md").read_text()


def test_the_best_pooling_is_chosen_on_validation(sets, encoder_folder, tmp_path):
    config = ProbeConfig(
        encoder=str(encoder_folder), data=str(sets), out=str(tmp_path), tasks="tones",
        protocol="logreg", pooling="best", layers="best",
    )  # fmt: skip
    (result,) = run_suite(config)
    tried = result["candidates"]
    assert len(tried) == 5 * 6  # poolings of a MAST x layers: last, 1, 2, 3, 1-3, stages
    assert [entry["dim"] for entry in tried] == sorted(entry["dim"] for entry in tried)
    best = max(entry["valid"] for entry in tried)
    first = next(entry for entry in tried if entry["valid"] == best)
    assert {key: result[key] for key in ("pooling", "layers", "dim", "valid")} == first
    assert result["baselines"]["untrained"]["dim"] == first["dim"]


def test_variants_are_tried_with_one_seed_and_the_best_is_scored_with_all(
    sets, encoder_folder, tmp_path
):
    config = ProbeConfig(
        encoder=str(encoder_folder), data=str(sets), out=str(tmp_path), tasks="tones",
        layers="best", baselines="false",
    )  # fmt: skip
    (result,) = run_suite(config)
    (single,) = run_suite(replace(config, seeds=1, out=str(tmp_path / "single")))
    assert len(result["scores"]) == 5
    assert len(single["scores"]) == 1
    assert result["candidates"] == single["candidates"]
    assert single["valid"] == max(one["valid"] for one in single["candidates"])


def test_published_crops_are_embedded_once_for_training_and_once_for_test(
    sets, encoder_folder, tmp_path
):
    config = ProbeConfig(
        encoder=str(encoder_folder), data=str(sets), out=str(tmp_path), tasks="tones",
        protocol="evar_strict", baselines="false",
    )  # fmt: skip
    with pytest.raises(ValueError, match="no published length is known; give crop_seconds="):
        run_suite(config)
    config = replace(config, crop_seconds=0.15)
    (result,) = run_suite(config)
    assert len(list((tmp_path / "embeddings").iterdir())) == 2
    assert result["crop_seconds"] == 0.15
    assert len(result["scores"]) == 3
    assert result["chosen"][0]["lr"] == 3e-4
    config = replace(config, protocol="linear")
    with pytest.raises(ValueError, match=r"whole clips; leave crop_seconds=0\.15 out"):
        run_suite(config)


def test_presets_bring_their_pooling_and_layers(sets, encoder_folder, tmp_path, tiny_encoder):
    settings = {"encoder": str(encoder_folder), "data": str(sets), "tasks": "tones"}
    (xares,) = run_suite(
        ProbeConfig(**settings, out=str(tmp_path), protocol="xares", baselines="false")
    )
    assert (xares["pooling"], xares["layers"], xares["chosen"][0]["epoch"][0] <= 10) == (
        "freq", "last", True,
    )  # fmt: skip
    assert xares["dim"] == 256
    (superb,) = run_suite(
        ProbeConfig(**settings, out=str(tmp_path), protocol="superb", baselines="false")
    )
    assert (superb["pooling"], superb["layers"]) == ("mean", "blocks")
    assert len(superb["chosen"][0]["layer_weights"]) == len(tiny_encoder.backbone.block_channels)
    (attentive,) = run_suite(
        ProbeConfig(**settings, out=str(tmp_path), protocol="attentive", seeds=1)
    )
    assert (attentive["pooling"], attentive["layers"]) == ("time16", "stages")
    chosen = attentive["chosen"][0]
    assert (len(chosen["layer_weights"]), chosen["parts"]) == (4, 16)
    assert attentive["baselines"]["log_mel"]["chosen"][0]["parts"] == 1


def test_the_encoder_is_updated_by_lape_and_by_nothing_else(encoder_folder, tmp_path):
    write_set(tmp_path / "data" / "tones", num_clips=192, seconds=0.1)
    before = (encoder_folder / "model.safetensors").read_bytes()
    config = ProbeConfig(
        encoder=str(encoder_folder), data=str(tmp_path / "data"), out=str(tmp_path),
        protocol="lape_finetune", epochs=10, crop_seconds=0.1, lr=3e-4,
    )  # fmt: skip
    (result,) = run_suite(config)
    assert result["encoder_updated"] is True
    assert result["mean"] > 0.8
    assert 1 <= result["chosen"][0]["epoch"][0] <= 10
    assert set(result["baselines"]) == {"untrained", "log_mel"}
    assert result["baselines"]["log_mel"]["fitted_by"] == "linear"
    assert (encoder_folder / "model.safetensors").read_bytes() == before
    config = replace(config, encoder="log_mel", out=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="trains an encoder, which log_mel is not"):
        run_suite(config)


@pytest.mark.slow
def test_two_processes_embed_what_one_embeds(sets, encoder_folder, tmp_path):
    import subprocess
    import sys

    from safetensors.torch import load_file

    words = ["linear_eval/run.py", f"encoder={encoder_folder}", f"data={sets}", "tasks=tones"]
    root = __import__("pathlib").Path(__file__).parents[2]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    for name, command in (("two", [*launch, *words]), ("one", words)):
        subprocess.run(
            [sys.executable, *command, f"out={tmp_path / name}"],
            check=True, cwd=root, capture_output=True, timeout=120,
        )  # fmt: skip
    one, two = (
        json.loads((tmp_path / name / "tones.linear.json").read_text()) for name in ("one", "two")
    )
    assert one["scores"] == two["scores"]
    files = sorted((tmp_path / "one" / "embeddings").iterdir())
    assert len(files) == 3
    for file in files:
        alone, shared = load_file(file), load_file(tmp_path / "two" / "embeddings" / file.name)
        assert alone["rows"].tolist() == shared["rows"].tolist()
        assert float((alone["values"] - shared["values"]).abs().max()) < 1e-5


def test_the_poster_is_one_command_and_one_table(tmp_path, encoder_folder, capsys, caplog):
    for name in ("nsynth_family", "urbansound8k", "another"):
        write_set(tmp_path / "sets" / name, num_clips=24)
    words = [f"data={tmp_path / 'sets'}", f"encoder={encoder_folder}", "tasks=poster"]
    assert main([*words, f"out={tmp_path / 'frozen'}", "seeds=1"]) == 0
    said = capsys.readouterr().out
    table = (tmp_path / "frozen" / "poster.md").read_text()
    assert said.endswith(table)
    assert "6 of the poster's 8 sets are absent: speech_commands_v1" in caplog.text
    assert "another" not in said
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 8 + 1
    own = [cell.strip() for cell in lines[-1].split("|")[2:-1]]
    assert own[:6] == ["absent"] * 6
    for cell, name in zip(own[6:], ("nsynth_family", "urbansound8k"), strict=True):
        result = json.loads((tmp_path / "frozen" / f"{name}.linear.json").read_text())
        assert cell.startswith(f"{100 * result['mean']:.1f}")
    flag = ["protocol=lape_finetune", "epochs=1", "crop_seconds=0.3"]
    assert main([*words, f"out={tmp_path / 'tuned'}", *flag, "baselines=false"]) == 0
    assert "Own rows: protocol lape_finetune" in capsys.readouterr().out
    with pytest.raises(UsageError, match="at least one of its sets"):
        main([f"data={tmp_path / 'sets' / 'another'}", *words[1:], f"out={tmp_path / 'x'}"])
