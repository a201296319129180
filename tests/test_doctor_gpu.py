"""heatlens doctor: this build of torch against the GPUs that are here, or are not."""

from __future__ import annotations

import pytest

from heatlens.config import load_settings
from heatlens.doctor import gpu


def states(findings) -> list[tuple[str, str]]:
    return [(one.check, one.state) for one in findings]


ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90")
RTX = gpu.Device("NVIDIA GeForce RTX 3090", (8, 6), 24 << 30)


def build(*devices: gpu.Device, fault: str = "", architectures=ARCHITECTURES) -> gpu.Torch:
    return gpu.Torch("2.8.0", "12.8", architectures, devices, fault)


@pytest.mark.parametrize(
    ("capability", "architectures", "fits"),
    [
        ((8, 6), ["sm_80"], True),
        ((8, 6), ["sm_90"], False),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((12, 0), ["sm_90"], False),
        ((12, 0), ["sm_120"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90a", "compute_90a"], False),
        ((8, 6), [], False),
    ],
)
def test_which_cards_a_build_has_code_for(capability, architectures, fits):
    assert gpu.built_for(capability, architectures) is fits


@pytest.mark.parametrize(
    ("torch", "wanted", "driver", "visible", "state", "text"),
    [
        (build(RTX), "auto", True, None, "ok", "cuda:0 NVIDIA GeForce RTX 3090, 24 GiB, 8.6"),
        (build(gpu.Device("K80", (3, 7), 1)), "auto", True, None, "problem", "is built for sm_75"),
        (build(gpu.Device("RTX", (8, 6), 1, "out of memory")), "cuda", True, None, "problem", "out of memory"),
        (build(fault="driver is too old (found version 11040)"), "auto", True, None, "warning", "11040"),
        (build(fault="driver is too old (found version 11040)"), "cuda", True, None, "problem", "11040"),
        (build(fault="no CUDA GPUs"), "auto", True, "", "warning", "CUDA_VISIBLE_DEVICES='' hides all"),
        (build(fault="no CUDA GPUs"), "cuda:0", True, "-1", "problem", "hides all"),
        (build(), "auto", True, None, "warning", "though a driver is here"),
        (build(), "auto", False, None, "ok", "none here"),
        (build(), "cuda", False, None, "problem", "no NVIDIA driver"),
        (build(), "cpu", True, None, "ok", "asks for none"),
        (gpu.Torch("2.8.0+cpu", ""), "auto", True, None, "warning", "a build for CPUs, and a GPU is here"),
        (gpu.Torch("2.8.0+cpu", ""), "auto", False, None, "ok", "none here"),
        (gpu.Torch("2.8.0+cpu", ""), "cuda", False, None, "problem", "asked for"),
    ],
)
def test_torch_against_the_gpu(torch, wanted, driver, visible, state, text):
    (found,) = gpu.judge(torch, wanted, driver=driver, visible=visible)
    assert (found.state, text in found.text) == (state, True), found


def test_only_the_device_that_is_used_can_be_a_problem():
    old = gpu.Device("K80", (3, 7), 1)
    assert states(gpu.judge(build(RTX, old), "auto", driver=True, visible=None)) == [("GPU", "ok"), ("GPU", "warning")]
    assert states(gpu.judge(build(old, RTX), "cuda:1", driver=True, visible=None))[1] == ("GPU", "ok")
    last = list(gpu.judge(build(RTX), "cuda:3", driver=True, visible=None))[-1]
    assert (last.state, "the last of 1 is cuda:0" in last.text) == ("problem", True)


def test_what_this_machines_torch_says_is_judged():
    assert list(gpu.gpu(load_settings(None, {}, {}, "attn_map")))
