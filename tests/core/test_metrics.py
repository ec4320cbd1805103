from maypole.core.metrics import Metrics


def test_lines_come_back_in_order_and_infinite_numbers_as_null(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.log(1, loss=2.5, name="a")
    metrics.log(2, loss=float("nan"), n=3)
    assert metrics.read() == [{"step": 1, "loss": 2.5, "name": "a"}, {"step": 2, "loss": None, "n": 3}]


def test_cut_drops_what_lies_beyond_the_step(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        metrics.log(step, loss=0.5)
    metrics.cut(3)
    assert [line["step"] for line in metrics.read()] == [1, 2, 3]
    metrics.log(4, loss=1)
    assert [line["step"] for line in Metrics(metrics.path).read()] == [1, 2, 3, 4]


def test_a_line_that_a_crash_cut_off_is_left_out_and_then_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    assert Metrics(path).read() == [{"step": 1}]
    metrics = Metrics(path)
    metrics.log(2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_reading_and_cutting_before_the_first_line_find_nothing(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.cut(0)
    metrics.sync()
    assert metrics.read() == []
    assert not metrics.path.exists()
