import json

import cv2
import pytest
import torch

from benchmarks.lib.cli import main
from benchmarks.speed import sampling
from benchmarks.speed.sampling import ALL, Case, build_encoders, build_input


def test_every_case_is_measured(tmp_path, capsys):
    """A row per encoder and share, with ratios to DETR's own encoder; keys and multiply-adds are those of the sequence."""
    argv = ["--device", "cpu", "--image", "128x128", "--maps", "C5", "--ratios", "0.25", "0.5", "--repeats", "1"]
    assert main(sampling.NAME, sampling.run, [*argv, "--output", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "sampling-cpu.json").read_text())
    rows = {(r["encoder"], r["share"]): r for r in content["results"]}
    assert [*rows] == [(encoder, share) for share in (ALL, 0.25, 0.5) for encoder in ("plain", "region")]
    assert [rows["plain", share]["keys"] for share in (ALL, 0.25, 0.5)] == [16, 34, 38]
    assert 30 < rows["region", 0.5]["keys"] <= 38 and rows["region", ALL]["keys"] < 16
    assert set(rows["plain", ALL]["ratios"].values()) == {1.0}
    assert rows["plain", 0.25]["gflops"] < rows["plain", 0.5]["gflops"]
    assert "polled 0.25, region" in capsys.readouterr().out and cv2.imread(str(tmp_path / "sampling-cpu.png")) is not None


@torch.no_grad()
def test_the_cases_share_their_weights():
    """What differs between rows is the method alone: with one pixel per cluster the clustered encoder is the plain one."""
    cases = build_encoders(5, [0.5], torch.device("cpu"))
    plain, clustered = cases[Case("plain", 0.5)], cases[Case("region", 0.5)]
    inputs = build_input((128, 64), 32, 2, torch.device("cpu"))
    assert plain.sampler is clustered.sampler and cases[Case("plain", ALL)].sampler is None
    own, other = plain.encoder.state_dict(), clustered.encoder.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in own.items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "enact.clustering.at_bends",
            lambda bends, lengths: (torch.arange(bends.shape[1]).expand(bends.shape), lengths.clone()),
        )
        torch.testing.assert_close(clustered.eval()(*inputs), plain.eval()(*inputs), rtol=0, atol=1e-5)
