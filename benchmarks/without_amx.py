"""Runs a command as on a processor without AMX (Linux on x86-64).

    python -m benchmarks.without_amx python experiments/prune_resnet.py ...

LiteRT computes int8 convolutions on AMX where a server has it, in tiles that
cost small networks more than they gain. Phones and sensors have no AMX: their
times are better told by the vector instructions that LiteRT falls back to. A
process must ask the kernel for AMX, and a seccomp filter refuses it.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

# linux/prctl.h, linux/seccomp.h
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_SECCOMP_MODE_FILTER = 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
# linux/bpf_common.h: load a word, jump if equal, return.
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
# Where struct seccomp_data has the number of the call and its first argument.
_CALL, _ARGUMENT = 0, 16
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM = 158, 0x1023

_FILTER = (
    (_LOAD, 0, 0, _CALL),
    (_JUMP_IF_EQUAL, 0, 3, _ARCH_PRCTL),
    (_LOAD, 0, 0, _ARGUMENT),
    (_JUMP_IF_EQUAL, 0, 1, _ARCH_REQ_XCOMP_PERM),
    (_RETURN, 0, 0, _ERRNO | errno.EINVAL),
    (_RETURN, 0, 0, _ALLOW),
)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


def refuse_amx():
    """Let the kernel refuse AMX to this process and to those it becomes."""
    code = b"".join(struct.pack("HBBI", *line) for line in _FILTER)
    code = ctypes.create_string_buffer(code)
    program = _Program(len(_FILTER), ctypes.addressof(code))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))


def _prctl(option, first, second):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, first, second, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


if __name__ == "__main__":
    if sys.platform != "linux" or platform.machine() != "x86_64":
        sys.exit(
            "Only x86-64 processors under Linux can have AMX taken away. "
            f"Received: {sys.platform}, {platform.machine()}"
        )
    if not sys.argv[1:]:
        sys.exit("Name the command to run: without_amx python SCRIPT ...")
    refuse_amx()
    os.execvp(sys.argv[1], sys.argv[1:])
