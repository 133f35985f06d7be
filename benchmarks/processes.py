"""How processes of one machine find each other, on each backend."""

import json
import socket


def free_ports(count):
    """Return ports of this machine that nobody uses."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def variables_of(rank, ports):
    """Return the environment variables of one of several processes.

    Args:
        rank: the number of the process.
        ports: a free port for each process.
    """
    hosts = [f"localhost:{port}" for port in ports]
    task = {"type": "worker", "index": rank}
    return {
        "TF_CONFIG": json.dumps({"cluster": {"worker": hosts}, "task": task}),
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": hosts[0],
        "KERAS_DISTRIBUTION_NUM_PROCESSES": str(len(ports)),
        "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(ports[0]),
        "WORLD_SIZE": str(len(ports)),
        "RANK": str(rank),
    }
