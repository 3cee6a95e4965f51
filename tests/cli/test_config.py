"""Profiles: defaults of flags, from a file that only its owner can write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from uploader.cli.app import app
from uploader.cli.config import origins
from uploader.cli.options import config_path
from uploader.errors import ConfigurationError, UnsafePath, VodupError

from .conftest import Cli

FILE = """
[profiles.default]
region = "cn-beijing"
retry-for = "5m"

[profiles.ecs]
oss-endpoint = "auto"
region = "cn-shenzhen"
part_size = 8388608
concurrency = 7
allow-host = ["a.example.com", "b.example.com"]
quiet = true
generate-thumbnail = false
api-rate = 3
root = "/media"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("VODUP_REGION", "VODUP_PROFILE", "VODUP_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "vodup" / "config.toml"
    path.parent.mkdir()
    write(path, FILE)
    return path


def write(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


def parsed(*words: str, command: str = "push") -> click.Context:
    root = click.Context(app, info_name="vodup")
    return app.commands[command].make_context(command, list(words), parent=root)


def params(*words: str, command: str = "push") -> dict[str, Any]:
    return parsed(*words, command=command).params


def refusal(kind: type[VodupError] = ConfigurationError, *words: str) -> VodupError:
    with pytest.raises(kind) as caught:
        parsed(*words)
    assert caught.value.next_step
    return caught.value


def test_without_a_file_there_are_no_profiles(config: Path) -> None:
    config.unlink()
    assert params()["region"] is None
    assert "Cannot read" in refusal(ConfigurationError, "--profile", "ecs").message


def test_the_default_profile_is_used_unless_another_is_named(config: Path) -> None:
    assert params()["region"] == "cn-beijing"
    assert params()["retry_for"] == 300
    ecs = params("--profile", "ecs")
    assert (ecs["region"], ecs["oss_endpoint"], ecs["retry_for"]) == ("cn-shenzhen", "auto", None)
    write(config, '[profiles.x]\nregion = "us-west-1"\n')
    assert params()["region"] is None


def test_values_are_read_as_those_of_flags(config: Path) -> None:
    ecs = params("--profile", "ecs")
    assert (ecs["part_size"], ecs["concurrency"]) == (8 << 20, 7)
    assert ecs["allow_host"] == ("a.example.com", "b.example.com")
    assert (ecs["quiet"], ecs["generate_thumbnail"]) == (True, False)
    write(config, "[profiles.default]\npart-size = 1\n")
    assert refusal().message.startswith("--part-size: expected a size from 100KiB to 5GiB")


def test_a_key_is_of_the_commands_that_have_the_flag(config: Path) -> None:
    assert "api_rate" not in params("--profile", "ecs")
    assert params("--profile", "ecs", command="ingest")["api_rate"] == 3
    assert params("--profile", "ecs", command="ingest")["root"] == "/media"
    write(config, '[profiles.default]\nroot = ["/a", "/b"]\n')
    assert params(command="worker")["root"] == ("/a", "/b")


def test_a_flag_wins_over_its_variable_over_the_profile_over_the_default(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert params()["region"] == "cn-beijing"
    monkeypatch.setenv("VODUP_REGION", "cn-hangzhou")
    assert params()["region"] == "cn-hangzhou"
    assert params("--region", "us-west-1")["region"] == "us-west-1"
    monkeypatch.setenv("VODUP_PROFILE", "ecs")
    assert params()["oss_endpoint"] == "auto"


def test_each_setting_knows_where_it_is_from(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VODUP_CONCURRENCY", "3")
    ctx = parsed("--profile", "ecs", "--region", "us-west-1", command="push")
    found = {flag: (origin, value) for flag, origin, value in origins(ctx)}
    assert found["--region"] == ("command line", "us-west-1")
    assert found["--concurrency"] == ("VODUP_CONCURRENCY", 3)
    assert found["--oss-endpoint"] == ("profile ecs", "auto")
    assert "--state" not in found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[profiles.default", "is not TOML"),
        ('region = "cn-beijing"', "keys outside of a profile"),
        ("profiles = 3", "keys outside of a profile"),
        ("profiles.default = 3", "has no profile"),
        ('[profiles.default]\nregoin = "x"', "regoin is no flag"),
        ('[profiles.default]\naccess-key-secret = "x"', "access-key-secret is no flag"),
        ('[profiles.default]\npaths = ["x"]', "paths is no flag"),
        ("[profiles.default]\nregion = []", "region must be a text or a number"),
        ('[profiles.default]\nallow-host = "x"', "allow-host must be a list of texts"),
        ("[profiles.default]\nallow-host = [1]", "allow-host must be a list of texts"),
        ('[profiles.default]\nquiet = "yes"', "quiet must be true or false"),
        ("[profiles.default]\nregion = 2026-11-30", "region must be a text or a number"),
    ],
)
def test_a_wrong_file_is_refused_with_its_path(config: Path, text: str, words: str) -> None:
    write(config, text)
    error = refusal()
    assert words in error.message
    assert str(config) in error.message


def test_a_misspelled_key_gets_a_hint(config: Path) -> None:
    write(config, '[profiles.default]\nregoin = "x"')
    assert "Did you mean region?" in refusal().next_step
    write(config, '[profiles.default]\naccess-key-secret = "x"')
    assert "never in this file" in refusal().next_step


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
@pytest.mark.posix
def test_a_file_that_others_can_write_is_refused(config: Path, mode: int) -> None:
    """It names hosts and commands that get credentials."""
    write(config, FILE, mode)
    assert "chmod 600" in refusal(UnsafePath).next_step
    write(config, FILE, 0o644)
    assert params()["region"] == "cn-beijing"


def test_where_the_file_is(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_path() == config
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setattr("sys.platform", "linux")
    assert config_path() == Path("/home/somebody/.config/vodup/config.toml")
    monkeypatch.setattr("sys.platform", "darwin")
    assert config_path() == Path("/home/somebody/Library/Application Support/vodup/config.toml")
    monkeypatch.setenv("VODUP_CONFIG", "/etc/vodup.toml")
    assert config_path() == Path("/etc/vodup.toml")
    assert "Cannot read /etc/vodup.toml" in refusal().message


def test_the_commands_that_call_no_service_have_no_profile() -> None:
    for command in ("version", "devserver", "demo"):
        names = {p.name for p in app.commands[command].get_params(click.Context(app))}
        assert "profile" not in names


def test_config_show_and_path_and_what_doctor_reports(cli: Cli) -> None:
    path = cli.folder / "config.toml"
    write(path, '[profiles.default]\nretry-for = "5s"\n[profiles.b]\noss-endpoint = "auto"\n')
    env = {"VODUP_CONFIG": str(path)}

    assert cli.run("config", "path", env=env).out == f"{path}\n"
    shown = cli.run("config", "show", env=env)
    assert shown.out.splitlines() == [
        "[profiles.default]", "retry-for = 5s", "[profiles.b]", "oss-endpoint = auto"
    ]  # fmt: skip
    assert cli.run("config", "show", "--json", env=env).last["oss_endpoint"] == "auto"
    assert cli.run("config", "show", env={"VODUP_CONFIG": "/none"}).code == 2

    doctor = cli.run("doctor", "--profile", "b", "--json", env=env)
    settings = next(line for line in doctor.lines if line["name"] == "settings")
    assert "--oss-endpoint from profile b" in settings["detail"]
    assert "--json from command line" in settings["detail"]
    assert "--vod-endpoint from VODUP_VOD_ENDPOINT" in settings["detail"]


def test_a_profile_says_where_keys_are_from(cli: Cli) -> None:
    path = cli.folder / "config.toml"
    write(path, '[profiles.cli]\ncredentials = "aliyun:work"\n')
    keys = cli.folder / ".aliyun" / "config.json"
    keys.parent.mkdir()
    work = {
        "name": "work",
        "mode": "AK",
        "region_id": "cn-hangzhou",
        "access_key_id": cli.server.access_key_id,
        "access_key_secret": cli.server.access_key_secret,
    }
    keys.write_text(json.dumps({"current": "other", "profiles": [work]}))
    env = {"VODUP_CONFIG": str(path), "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "wrong"}
    cli.file()

    ended = cli.run("push", "movie.mp4", "--profile", "cli", env=env)
    assert ended.code == 0, ended.err
    assert "AccessKey from aliyun:work" in cli.run("doctor", "--profile", "cli", env=env).out
    assert cli.run("push", "movie.mp4", "--credentials", "x", env=env).code == 2
