import json

from etils import epath

from flair_jax.training import metric_writer
from flair_jax.training.metric_writer import MetricWriter


def written(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_local_file_has_each_line_at_once(tmp_path):
    writer = MetricWriter(epath.Path(tmp_path), 0)
    writer.write(1, {"loss": 2.0})
    assert written(tmp_path) == [{"step": 1, "loss": 2.0}]
    writer.write(2, {"loss": 1.5})
    writer.close()
    assert written(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]


def test_what_lies_behind_the_checkpoint_or_is_cut_short_is_dropped(tmp_path):
    lines = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 1, "val'
    (tmp_path / "metrics.jsonl").write_text(lines)
    MetricWriter(epath.Path(tmp_path), 1).close()
    assert written(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_a_bucket_gets_the_whole_file_when_it_is_flushed(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_writer, "is_remote", lambda path: True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    writer = MetricWriter(epath.Path(tmp_path), 1)
    writer.write(2, {"loss": 1.5})
    assert [line["step"] for line in written(tmp_path)] == [1]
    writer.flush()
    writer.write(3, {"loss": 1.25})
    assert [line["step"] for line in written(tmp_path)] == [1, 2]
    monkeypatch.setattr(metric_writer, "_SECONDS", -1)
    writer.write(4, {"loss": 1.125})
    assert [line["step"] for line in written(tmp_path)] == [1, 2, 3, 4]
    writer.close()
