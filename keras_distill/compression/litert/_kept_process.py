"""The second process of the converter, which is kept for the next model.

It takes seconds to import TensorFlow. So the process waits for other models,
one folder per line of its input, until it was idle for a minute or this process
ends.
"""

import atexit
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

_IDLE_SECONDS = 60


class KeptProcess:
    """Runs a module in a process that works through folders.

    Args:
        module: name of the module, which reads the path of a folder from each
            line of its input, and writes a line when it is done with it.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._timer = threading.Timer(0, self.close)
        atexit.register(self.close)

    def run(self, folder: pathlib.Path, keep: bool) -> tuple[int, str]:
        """Run the module on a folder.

        Args:
            folder: path of the folder.
            keep: bool. Whether the process may have seen other models before,
                and may see others afterwards. If `False`, it is a new one.

        Returns:
            `(return_code, errors)`: 0 if the process is done with the folder,
            otherwise how it ended, and what it wrote to its standard error.
        """
        if not keep:
            self.close()
        with self._lock:
            self._timer.cancel()
            result = self._run(folder)
        if not keep:
            self.close()
        return result

    def _run(self, folder):
        if self._process is None or self._owner != os.getpid():
            self._start()
        begin = self._errors.stat().st_size
        try:
            self._process.stdin.write(f"{folder}\n")
            self._process.stdin.flush()
            done = self._process.stdout.readline()
        except BrokenPipeError:
            done = ""
        if done:
            self._timer = threading.Timer(_IDLE_SECONDS, self.close)
            self._timer.daemon = True
            self._timer.start()
            return 0, ""
        return self._end(begin)

    def _start(self):
        environment = os.environ | {
            "KERAS_BACKEND": "tensorflow",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            # It does not need a GPU, and the memory of GPUs may be in use.
            "CUDA_VISIBLE_DEVICES": "-1",
        }
        self._owner = os.getpid()  # a fork of this process starts its own
        errors, path = tempfile.mkstemp(suffix=".log")
        self._errors = pathlib.Path(path)
        with os.fdopen(errors, "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def close(self) -> None:
        """End the process, if it runs."""
        with self._lock:
            self._timer.cancel()
            if self._process is not None and self._owner == os.getpid():
                self._end()

    def _end(self, begin=0):
        """Return how the process ended, and its errors from a byte on."""
        process, self._process = self._process, None
        process.communicate()  # ends its input
        errors = self._errors.read_bytes()[begin:].decode(errors="replace")
        self._errors.unlink()
        return process.returncode, errors
