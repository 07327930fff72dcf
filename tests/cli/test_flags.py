"""Dramatiq's flags in the section [pjobs]."""

import argparse
import re
import subprocess

import pytest

from pyramid_jobstate.cli.faults import Refused
from pyramid_jobstate.cli.flags import FLAGS, add_to, arguments_of
from pyramid_jobstate.cli.work import find_script


def test_the_flags_are_those_of_dramatiq() -> None:
    """Every flag of the installed Dramatiq is known, and takes the same values."""
    done = subprocess.run(
        [find_script("dramatiq"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200"},
    )
    theirs = set(re.findall(r"^  (?:-\w.*, )?(?:-.*)?--([a-z-]+)", done.stdout, re.M))
    assert {flag.name for flag in FLAGS} == theirs - {"help", "version"}
    parser = argparse.ArgumentParser()
    add_to(parser)
    for flag in FLAGS:
        takes_value = flag.kind not in ("switch", "count")
        named = re.search(rf"--{flag.name}( \S+)?", done.stdout)
        assert named is not None
        assert (named[1] is not None) == takes_value, flag


def test_values_become_arguments() -> None:
    """Each kind of value becomes arguments, with either kind of dash in the name."""
    settings = {
        "processes": "2",
        "worker_shutdown_timeout": "0",
        "queues": "default\nmail",
        "pid-file": "/run/a b",
        "watch-include": "*.a *.b",
        "use-spawn": "yes",
        "skip-logging": "false",
        "verbose": "2",
        "path": "",
        "log-file": "",
    }
    assert arguments_of(settings, "a.ini") == {
        "processes": ["--processes", "2"],
        "worker-shutdown-timeout": ["--worker-shutdown-timeout", "0"],
        "queues": ["--queues", "default", "mail"],
        "pid-file": ["--pid-file=/run/a b"],
        "watch-include": ["--watch-include=*.a", "--watch-include=*.b"],
        "use-spawn": ["--use-spawn"],
        "skip-logging": [],
        "verbose": ["--verbose", "--verbose"],
        "path": [],
        "log-file": [],
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("procesess", "2", "a.ini: 'procesess' in [pjobs] is not a long flag of Dram"),
        ("p", "2", "a.ini: 'p' in [pjobs] is not a long flag"),
        ("processes", "two", "processes in [pjobs] is 'two', not a whole number from "),
        ("processes", "٣", "is '٣', not a whole number from 1 to "),
        ("processes", "0", "is '0', not a whole number from 1 to "),
        ("threads", "0", "a.ini: threads in [pjobs] is '0', not a whole number from "),
        ("threads", "-1", "is '-1', not a whole number from 1 to "),
        ("worker_shutdown_timeout", "-1", "is '-1', not a whole number from 0 to "),
        ("use_spawn", "tru", "use_spawn in [pjobs] is 'tru', neither true nor false."),
        ("verbose", "", "verbose in [pjobs] is '', not a whole number from 0 to "),
    ],
)
def test_mistakes_name_the_setting(name: str, value: str, message: str) -> None:
    """A wrong name or value is an error that names it, its section and the file."""
    with pytest.raises(Refused) as caught:
        arguments_of({name: value}, "a.ini")
    assert message in str(caught.value)
