"""Writes tests/data/layouts by the libraries whose layouts they are: `datasets` and `webdataset`.

    pip install datasets==5.2.0 webdataset==1.0.2 soundfile && python tests/data/make_layouts.py DIR

Twelve tones of 400 samples at 8 kHz, clip i of 200 + 100 i Hz: a DatasetDict of 8 and 4 clips by
save_to_disk and by to_parquet, in row groups of three; and one tar of the first six.
"""

import io
import sys
from pathlib import Path

import numpy as np
import soundfile

CLASSES = ["frog", "rain"]


def wav(i: int) -> bytes:
    file = io.BytesIO()
    tone = 0.3 * np.sin(2 * np.pi * (200 + 100 * i) * np.arange(400) / 8000)
    soundfile.write(file, tone.astype(np.float32), 8000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def main(out: Path) -> None:
    import webdataset
    from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, List, Value

    features = Features(
        {
            "audio": Audio(sampling_rate=8000),
            "label": ClassLabel(names=CLASSES),
            "site": Value("string"),
            "tags": List(ClassLabel(names=["wet", "loud"])),
        }
    )
    parts = {}
    for part, numbers in {"train": range(8), "test": range(8, 12)}.items():
        columns = {
            "audio": [{"bytes": wav(i), "path": f"{i:03d}.wav"} for i in numbers],
            "label": [i % 2 for i in numbers],
            "site": [f"s{i % 3}" for i in numbers],
            "tags": [[0] if i % 2 else [0, 1] for i in numbers],
        }
        parts[part] = Dataset.from_dict(columns).cast(features)
    DatasetDict(parts).save_to_disk(str(out / "saved"), num_shards={"train": 2, "test": 1})
    for part, one in parts.items():
        one.to_parquet(str(out / "parquet" / f"{part}-00000-of-00001.parquet"), batch_size=3)
    with webdataset.TarWriter(str(out / "shard.tar")) as tar:
        for i in range(6):
            own = {
                "wav": wav(i),
                "cls": i % 2,
                "json": {"site": f"s{i % 3}"},
                "txt": CLASSES[i % 2],
            }
            tar.write({"__key__": f"{i:03d}", **own})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
