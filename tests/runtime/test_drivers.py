"""How the runtime calls a vendor's driver, on a fake one that runs in this process."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llmc.errors import EnvironmentLacks
from llmc.runtime.drivers.driver import as_bytes
from llmc.runtime.drivers.native import COPIERS, CUDA, PIECE, Library, NativeDriver

FACTS = {"symbol": "add", "threads": 128, "shared": 100_000, "signature": ["*fp32", "i32", "i32"]}


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    library = tmp_path_factory.mktemp("fake") / "libfake.so"
    source = Path(__file__).with_name("fake_cuda.c")
    subprocess.run([sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", "-w", "-o", library, source], check=True)
    return replace(CUDA, libraries=(str(library),))


@pytest.fixture
def driver(names):
    opened = NativeDriver(names)
    yield opened
    opened.close()


def values(driver, address, n):
    out = np.empty(n, np.float32)
    driver.download(address, out)
    return out


def test_bytes_go_there_and_back(driver, random):
    data = random.random(1000, np.float32)
    address, other = driver.allocate(data.nbytes), driver.allocate(data.nbytes)
    assert address % 256 == 0 and not values(driver, address, 1000).any()
    driver.upload(address, as_bytes(data))
    driver.copy(address, other, data.nbytes)
    driver.free(address)
    assert np.array_equal(values(driver, other, 1000), data)
    readonly = memoryview(data.tobytes())
    driver.upload(other, readonly)
    assert np.array_equal(values(driver, other, 1000), data) and driver.free_bytes() > 0


def test_large_uploads_arrive_whole(driver, random):
    data = random.integers(0, 256, COPIERS * PIECE + 12_345, np.uint8)
    address = driver.allocate(data.nbytes)
    driver.upload(address, as_bytes(data))
    out = np.empty_like(data)
    driver.download(address, out)
    assert np.array_equal(out, data)


def test_a_kernel_that_overlaps_is_launched_so_and_gets_scratch_memory(driver):
    kernel, address = driver.load(b"fake kernel", {**FACTS, "overlaps": True, "scratch": 256}), driver.allocate(64)
    driver.launch(kernel, (2, 1, 1), [address, 3, 4])
    assert values(driver, address, 5).tolist() == [3, 3, 3, 3, 0]
    assert driver._library._library.fake_overlapped() == 1
    with pytest.raises(EnvironmentLacks, match="scratch"):
        driver.launch(kernel, (1 << 20, 1, 1), [address, 3, 4])


def test_kernels_are_launched_and_recorded(driver):
    kernel, address = driver.load(b"fake kernel", FACTS), driver.allocate(64)
    driver.launch(kernel, (1, 1, 1), [address, 3, 4])
    assert values(driver, address, 5).tolist() == [3, 3, 3, 3, 0]
    assert driver.record()
    driver.launch(kernel, (1, 1, 1), [address, 2, 5])
    driver.launch(kernel, (1, 1, 1), [address, 10, 1])
    recording = driver.recorded()
    assert values(driver, address, 5).tolist() == [3, 3, 3, 3, 0], "recording must not run"
    driver.replay(recording)
    driver.replay(recording)
    assert values(driver, address, 5).tolist() == [27, 7, 7, 7, 4]


def test_another_thread_may_go_on(driver):
    kernel, address, failed = driver.load(b"fake kernel", FACTS), driver.allocate(64), []

    def work():
        try:
            driver.launch(kernel, (1, 1, 1), [address, 1, 2])
        except EnvironmentLacks as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed and values(driver, address, 3).tolist() == [1, 1, 0]


def test_what_the_driver_says_is_told(driver, names):
    with pytest.raises(EnvironmentLacks, match="out of memory") as error:
        driver.allocate(1 << 40)
    assert "kv-cache" in error.value.hint
    with pytest.raises(EnvironmentLacks, match="no binary for this device"):
        driver.load(b"something else", FACTS)
    assert Library(names).arch() == "sm_90"


def test_a_machine_without_the_library():
    with pytest.raises(EnvironmentLacks, match="not on this machine"):
        Library(replace(CUDA, libraries=("libnowhere.so.1",)))


def test_a_driver_that_is_too_old(names):
    with pytest.raises(EnvironmentLacks, match="too old"):
        Library(replace(names, functions={**CUDA.functions, "graph": "cuGraphLaunchFromTheFuture"}))
