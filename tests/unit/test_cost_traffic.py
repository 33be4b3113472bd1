"""Bytes between levels of the memory, on loops small enough to count by hand."""

from __future__ import annotations

import pytest
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwprune.cost.traffic import Loops

KIB = 1024


def kernel(body, *shapes):
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            body(*(T.arg(f"x{i}", T.buffer(shape, "float32")) for i, shape in enumerate(shapes)))
    return builder.get()


def product(m: int, n: int, k: int):
    """y[i, j] += a[i, p] * b[p, j], rows outermost."""

    def body(a, b, y):
        with T.serial(0, m) as i, T.serial(0, n) as j, T.serial(0, k) as p:
            T.buffer_store(y, y[i, j] + a[i, p] * b[p, j], [i, j])

    return kernel(body, (m, k), (k, n), (m, n))


def test_everything_once_where_it_fits():
    # 64 x 64 floats are 16 KiB each
    assert Loops(product(64, 64, 64), 1).traffic(64 * KIB, shared=False) == {0: 16 * KIB, 1: 16 * KIB, 2: 16 * KIB}


def test_what_does_not_stay_comes_again():
    # one row of y takes all of b (16 KiB): it comes for each of 64 rows; rows of a and y are passed once
    found = Loops(product(64, 64, 64), 1).traffic(8 * KIB, shared=False)
    assert found[1] == 64 * 16 * KIB and found[0] == found[2] == 16 * KIB


def test_what_an_iteration_leaves_the_next_one_finds():
    # b fits with a row of a and of y beside it: it comes once though all three together do not fit
    assert Loops(product(64, 64, 64), 1).traffic(17 * KIB, shared=False) == {0: 16 * KIB, 1: 16 * KIB, 2: 16 * KIB}


def test_windows_overlap_and_strides_skip():
    def body(x, y):
        with T.serial(0, 15) as i, T.serial(0, 3) as r, T.serial(0, 16) as c:
            T.buffer_store(y, y[i, c] + x[2 * i + r, c], [i, c])

    # rows 2i + r for i < 15, r < 3 are all of 31; a row of 16 floats is one line
    assert Loops(kernel(body, (40, 16), (15, 16)), 1).footprint() == {0: 31 * 64, 1: 15 * 64}

    def skipping(x, y):
        with T.serial(0, 15) as i, T.serial(0, 16) as c:
            T.buffer_store(y, x[2 * i, c], [i, c])

    assert Loops(kernel(skipping, (40, 16), (15, 16)), 1).footprint()[0] == 15 * 64


def test_of_two_indices_the_one_that_is_taken_counts():
    def body(x, y):
        with T.serial(0, 8) as i, T.serial(0, 16) as c:
            T.buffer_store(y, x[tirx.Select(i == 0, 40, i), c], [i, c])

    def of_one_row(x, y):
        with T.serial(0, 1) as i, T.serial(0, 16) as c:
            T.buffer_store(y, x[tirx.Select(i == 0, 40, i), c], [i, c])

    def of_another(x, y):
        with T.serial(1, 7) as i, T.serial(0, 16) as c:
            T.buffer_store(y, x[tirx.Select(i == 0, 40, i), c], [i, c])

    # row 40 or rows 0 to 7: nine at most, of a line each
    assert Loops(kernel(body, (64, 16), (8, 16)), 1).footprint()[0] == 9 * 64
    assert Loops(kernel(of_one_row, (64, 16), (8, 16)), 1).footprint()[0] == 64
    assert Loops(kernel(of_another, (64, 16), (8, 16)), 1).footprint()[0] == 6 * 64


def test_whole_lines_move():
    def column(x, y):
        with T.serial(0, 64) as i:
            T.buffer_store(y, x[i, 3], [i])

    assert Loops(kernel(column, (64, 64), (64,)), 1).footprint() == {0: 64 * 64, 1: 256}


def shared(tasks: int):
    """Each task reads its own row of x and all of w."""

    def body(x, w, y):
        with T.parallel(0, tasks) as t, T.serial(0, 4096) as i:
            T.buffer_store(y, x[t, i] * w[i], [t, i])

    return kernel(body, (tasks, 4096), (4096,), (tasks, 4096))


def test_the_thread_with_most_tasks_counts():
    # five tasks on two threads: three of 16 KiB; the weights stay in 64 KiB
    assert Loops(shared(5), 2).traffic(64 * KIB, shared=False) == {0: 48 * KIB, 1: 16 * KIB, 2: 48 * KIB}


def test_a_shared_cache_gives_all_threads_the_same_weights():
    # 4 tasks need 4 * 32 + 16 KiB; threads abreast fetch the weights once a wave
    assert Loops(shared(4), 2).traffic(256 * KIB, shared=True)[1] == 16 * KIB
    found = Loops(shared(4), 2).traffic(40 * KIB, shared=True)
    assert found == {0: 64 * KIB, 1: 2 * 16 * KIB, 2: 64 * KIB}


def test_accumulators_are_free():
    def body(x, y):
        acc = T.alloc_buffer((16,), "float32", scope="local")
        with T.serial(0, 16) as i:
            T.buffer_store(acc, x[i], [i])
        with T.serial(0, 16) as i:
            T.buffer_store(y, acc[i], [i])

    assert Loops(kernel(body, (16,), (16,)), 1).footprint() == {0: 64, 1: 64}


@pytest.mark.parametrize("cache", [1 * KIB, 8 * KIB, 20 * KIB, 64 * KIB])
def test_a_larger_cache_never_moves_more(cache):
    loops = Loops(product(48, 56, 64), 2)
    assert sum(loops.traffic(2 * cache, shared=False).values()) <= sum(loops.traffic(cache, shared=False).values())


def test_bounds_that_depend_on_the_thread():
    def body(x, y):
        with T.parallel(0, 4) as t:
            with T.serial(0, tirx.min(t * 4 + 4, 14) - t * 4) as i:
                T.buffer_store(y, x[t * 4 + i], [t * 4 + i])

    assert Loops(kernel(body, (16,), (16,)), 4).footprint() == {0: 64, 1: 64}
