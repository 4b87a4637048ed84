"""What a processor can do and Numba has no word for.

`reached` needs AVX-512 with VNNI, and what has to do with float16 `has_float16`; all others compile
everywhere.
"""

from typing import Any, no_type_check

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from musketeers.memory import LINE

_LANES = 16
"""32-bit sums in a register."""
_REGISTERS = 4
STEP = 4
"""Dimensions whose products one instruction adds to a sum."""
GROUP = _LANES * _REGISTERS
"""Items that are multiplied at once."""
TOGETHER = 6
"""Users that are multiplied at once: 6 x 4 registers of sums, of 32, never go to memory."""


def compiled_for(feature: str) -> bool:
    """Whether loops are compiled for a processor that has this, in LLVM's words."""
    return f"+{feature}" in _target()[2].split(",")


def has_float16() -> bool:
    """Whether a float16 is turned into a float32, and back, by one instruction.

    By that of every 64-bit Arm processor, and of x86 since 2012.
    """
    return compiled_for("f16c") or _target()[0].startswith(("aarch64", "arm64"))


def _target() -> tuple[str, str, str]:
    target: Any = cpu_target.target_context
    return target.codegen().magic_tuple()


@intrinsic
@no_type_check
def prefetch(_typing, table, _row, _column):
    """Ask for the cache line of ``table[_row, _column]``, to be there when it is needed."""

    @no_type_check
    def codegen(context, builder, signature, arguments):
        kind = signature.args[0]
        array = context.make_array(kind)(context, builder, arguments[0])
        place = cgutils.get_item_pointer(context, builder, kind, array, arguments[1:])
        place = builder.bitcast(place, cgutils.voidptr_t)
        number = ir.IntType(32)
        hint = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, hint, "llvm.prefetch.p0")
        # for reading, kept near, data
        builder.call(function, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(table, types.intp, types.intp), codegen


@intrinsic
@no_type_check
def _per_line(_typing, table):
    """Numbers of the table that are on a cache line, which an array's itemsize tells too late."""

    @no_type_check
    def codegen(context, _builder, _signature, _arguments):
        size = context.get_abi_sizeof(context.get_data_type(table.dtype))
        return context.get_constant(types.intp, LINE // size)

    return types.intp(table), codegen


@njit(nogil=True, cache=True, forceinline=True)
@no_type_check
def ask(table, row):
    """Ask for ``table[row]``: from a large table, waiting for a row costs more than arithmetic."""
    for d in range(0, table.shape[1], _per_line(table)):
        prefetch(table, row, d)


@intrinsic
@no_type_check
def widened(_typing, number):
    """The number itself, or, of a uint16, the float32 that these bits of a float16 stand for."""

    @no_type_check
    def codegen(_context, builder, _signature, arguments):
        if number != types.uint16:
            return arguments[0]
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return _taken(number)(number), codegen


@intrinsic
@no_type_check
def kept(_typing, table, _number):
    """A number as `table` keeps it: as it is, or the bits of the nearest float16 (uint16)."""

    @no_type_check
    def codegen(_context, builder, _signature, arguments):
        return _kept(builder, table.dtype, arguments[1])

    return table.dtype(table, _taken(table.dtype)), codegen


@intrinsic
@no_type_check
def stochastically_rounded(_typing, table, _number, _noise):
    """The same, but of the two nearest float16 either, the nearer one more often.

    So what is added in steps that are small beside the spacing of float16 is not lost, on average
    over `_noise`, whole numbers of which the lowest 13 bits are uniform.  Gupta et al., ICML 2015.
    """

    @no_type_check
    def codegen(_context, builder, _signature, arguments):
        _, number, noise = arguments
        if table.dtype == types.uint16:
            # of a float32's bits float16 has not the last 13
            word = ir.IntType(32)
            last = ir.Constant(word, 0x1FFF)
            bits = builder.add(builder.bitcast(number, word), builder.and_(noise, last))
            number = builder.bitcast(builder.and_(bits, builder.not_(last)), ir.FloatType())
        return _kept(builder, table.dtype, number)

    return table.dtype(table, _taken(table.dtype), types.uint32), codegen


@no_type_check
def _taken(kind):
    return types.float32 if kind == types.uint16 else kind


@no_type_check
def _kept(builder, kind, number):
    if kind != types.uint16:
        return number
    return builder.bitcast(builder.fptrunc(number, ir.HalfType()), ir.IntType(16))


@intrinsic
@no_type_check
def reached(_typing, groups, _group, users, places, _first, cuts, _masks):
    """Mark in ``_masks[j]`` which of a group's items exceed ``cuts[j]``; whether any does.

    The products are those of ``users[places[_first + j]]`` for j below `TOGETHER`.
    """

    @no_type_check
    def codegen(context, builder, signature, arguments):
        byte, number, word = ir.IntType(8), ir.IntType(32), ir.IntType(64)
        register = ir.VectorType(number, _LANES)
        zeros, unknown = ir.Constant(register, None), ir.Constant(register, ir.Undefined)

        @no_type_check
        def array(place):
            return context.make_array(signature.args[place])(context, builder, arguments[place])

        @no_type_check
        def row_of(table, row):
            width = cgutils.unpack_tuple(builder, table.strides)[0]
            start = builder.bitcast(table.data, byte.as_pointer())
            return builder.gep(start, [builder.mul(row, width)])

        @no_type_check
        def at(pointer, offset, kind):
            return builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer())

        @no_type_check
        def in_all_lanes(value):
            one = builder.insert_element(unknown, value, number(0))
            return builder.shuffle_vector(one, unknown, zeros)

        table, vectors, chosen, least, marks = (array(place) for place in (0, 2, 3, 5, 6))
        group = row_of(table, arguments[1])
        rows = [
            builder.load(builder.gep(chosen.data, [builder.add(arguments[4], word(j))]))
            for j in range(TOGETHER)
        ]
        rows = [row_of(vectors, row) for row in rows]
        sums = [
            [cgutils.alloca_once_value(builder, zeros) for _ in range(_REGISTERS)] for _ in rows
        ]
        # unsigned bytes of the items times signed ones of the user, four at a time
        kind = ir.FunctionType(register, [register] * 3)
        multiply = cgutils.get_or_insert_function(
            builder.module, kind, "llvm.x86.avx512.vpdpbusd.512"
        )
        n_steps = builder.udiv(cgutils.unpack_tuple(builder, vectors.shape)[1], word(STEP))
        with cgutils.for_range(builder, n_steps) as step:
            start = builder.mul(step.index, word(GROUP * STEP))
            items = [
                builder.load(at(group, builder.add(start, word(64 * part)), register), align=64)
                for part in range(_REGISTERS)
            ]
            for row, row_sums in zip(rows, sums, strict=True):
                four = at(row, builder.mul(step.index, word(STEP)), number)
                factor = in_all_lanes(builder.load(four, align=1))
                for place, part in zip(row_sums, items, strict=True):
                    builder.store(
                        builder.call(multiply, [builder.load(place), part, factor]), place
                    )
        anywhere = word(0)
        for j, row_sums in enumerate(sums):
            cut = in_all_lanes(builder.load(builder.gep(least.data, [word(j)])))
            mask = word(0)
            for part, place in enumerate(row_sums):
                above = builder.icmp_signed(">", builder.load(place), cut)
                bits = builder.zext(builder.bitcast(above, ir.IntType(_LANES)), word)
                mask = builder.or_(mask, builder.shl(bits, word(_LANES * part)))
            builder.store(mask, builder.gep(marks.data, [word(j)]))
            anywhere = builder.or_(anywhere, mask)
        return builder.icmp_unsigned("!=", anywhere, word(0))

    arguments = (groups, types.intp, users, places, types.intp, cuts, _masks)
    return types.boolean(*arguments), codegen


@intrinsic
@no_type_check
def lowest_bit(_typing, _mask):
    """The place of the lowest bit of a number that is not 0."""

    @no_type_check
    def codegen(_context, builder, _signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), codegen
