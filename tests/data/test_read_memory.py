import json

import pyarrow as pa

from maypole.data import TEXT, read, stream


def test_memory_follows_the_block_and_not_the_length_of_the_corpus(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for i in range(6000):
            file.write(json.dumps({"text": f"{i} " * 2000, "late": i if i > 5000 else None}) + "\n")
    size = path.stat().st_size
    before, peak = pa.total_allocated_bytes(), 0
    for batch in stream(path, TEXT):
        peak = max(peak, pa.total_allocated_bytes() - before)
        del batch
    assert size > 50 << 20
    assert peak < 24 << 20
    before = pa.total_allocated_bytes()
    assert len(read(path, TEXT)) == 6000
    assert pa.total_allocated_bytes() - before < 1 << 20
