"""Writes dashboards/tacit.json: `python deploy/grafana/generate.py`, `--check` says whether it is current."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "dashboards" / "tacit.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT = 8, 8

LAG = "histogram_quantile(0.95, sum by (service, le) (rate(tacit_event_loop_lag_seconds_bucket[5m])))"

Query = tuple[str, str]
"""PromQL and the legend of its lines."""

ROWS: Sequence[tuple[str, Sequence[tuple[str, str, Sequence[Query]]]]] = (
    (
        "Rounds",
        (
            (
                "Attempts per minute",
                "cpm",
                [("sum by (outcome) (rate(tacit_attempts_ended_total[5m])) * 60", "{{outcome}}")],
            ),
            (
                "Seconds of a committed round",
                "s",
                [
                    ("histogram_quantile(0.5, sum by (le) (rate(tacit_round_seconds_bucket[15m])))", "median"),
                    ("histogram_quantile(0.95, sum by (le) (rate(tacit_round_seconds_bucket[15m])))", "95%"),
                ],
            ),
            (
                "Mean seconds by phase",
                "s",
                [
                    (
                        "sum by (phase) (rate(tacit_phase_seconds_sum[15m]))"
                        " / sum by (phase) (rate(tacit_phase_seconds_count[15m]))",
                        "{{phase}}",
                    )
                ],
            ),
        ),
    ),
    (
        "Sites",
        (
            (
                "Sites",
                "short",
                [("tacit_sites_connected", "connected"), ("tacit_round_survivors", "in the last sum")],
            ),
            (
                "Drop-outs per minute",
                "cpm",
                [("sum by (reason) (rate(tacit_sites_dropped_total[5m])) * 60", "{{reason}}")],
            ),
            ("Bytes of sites", "Bps", [("sum by (direction) (rate(tacit_site_bytes_total[5m]))", "{{direction}}")]),
        ),
    ),
    (
        "Calls",
        (
            (
                "Calls by method",
                "reqps",
                [("sum by (service, method) (rate(tacit_rpc_finished_total[5m]))", "{{service}} {{method}}")],
            ),
            (
                "Slowest twentieth of calls",
                "s",
                [
                    (
                        "histogram_quantile(0.95, sum by (service, method, le) (rate(tacit_rpc_seconds_bucket[5m])))",
                        "{{service}} {{method}}",
                    )
                ],
            ),
            (
                "Refused calls",
                "reqps",
                [("sum by (service, error_code) (rate(tacit_rpc_refused_total[5m]))", "{{service}} {{error_code}}")],
            ),
        ),
    ),
    (
        "Services",
        (
            (
                "Sessions and queues",
                "short",
                [
                    ("tacit_sessions_open", "sessions at {{service}}"),
                    ("tacit_queue_waiting", "{{queue}} that wait at {{service}}"),
                    ("sum by (service) (tacit_rpc_open)", "open calls at {{service}}"),
                ],
            ),
            (
                "Memory",
                "bytes",
                [
                    ('process_resident_memory_bytes{job="tacit"}', "{{service}}"),
                    ("tacit_staging_used_bytes", "staged at {{service}}"),
                ],
            ),
            (
                "Processors, and how late the event loop is (95%)",
                "short",
                [
                    ('rate(process_cpu_seconds_total{job="tacit"}[5m])', "processors of {{service}}"),
                    (
                        LAG,
                        "seconds late at {{service}}",
                    ),
                ],
            ),
        ),
    ),
    (
        "Trust",
        (
            (
                "Days until certificates expire",
                "d",
                [("(tacit_certificate_not_after_timestamp_seconds - time()) / 86400", "{{service}}")],
            ),
            (
                "Days until revocation lists are out of date",
                "d",
                [("(tacit_revocations_next_update_timestamp_seconds > 0) / 86400 - time() / 86400", "{{service}}")],
            ),
            (
                "Privacy budget",
                "short",
                [
                    ("tacit_privacy_epsilon_spent", "spent by {{job_id}}"),
                    ("tacit_privacy_epsilon_limit", "limit of {{job_id}}"),
                ],
            ),
            (
                "Connections, and callers beyond their quotas",
                "short",
                [
                    ("tacit_connections_open", "open at {{service}}"),
                    ("sum by (service) (rate(tacit_tls_handshakes_total[5m]))", "new per second at {{service}}"),
                    (
                        "sum by (service, quota) (rate(tacit_quota_exceeded_total[5m]))",
                        "beyond {{quota}} per second at {{service}}",
                    ),
                ],
            ),
            ("Versions", "short", [("sum by (service, version) (tacit_build_info)", "{{service}} {{version}}")]),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    for row, (title, row_panels) in enumerate(ROWS):
        top = row * (2 * HEIGHT + 1)
        panels.append(_row(len(panels) + 1, title, top))
        for column, (name, unit, queries) in enumerate(row_panels):
            place = {"h": HEIGHT, "w": WIDTH, "x": column % 3 * WIDTH, "y": top + 1 + column // 3 * HEIGHT}
            panels.append(_panel(len(panels) + 1, name, unit, queries, place))
    return {
        "uid": "tacit",
        "title": "Tacit",
        "tags": ["tacit"],
        "timezone": "utc",
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": []},
        "annotations": {"list": []},
        "panels": panels,
    }


def _row(number: int, title: str, top: int) -> dict[str, Any]:
    place = {"h": 1, "w": 24, "x": 0, "y": top}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(number: int, title: str, unit: str, queries: Sequence[Query], place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
        for index, (expression, legend) in enumerate(queries)
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi"},
        },
        "targets": targets,
    }


def main(arguments: list[str]) -> int:
    """Write the file, or with --check compare it; 1 when it was not current."""
    current = json.dumps(dashboard(), indent=2) + "\n"
    if "--check" in arguments:
        return int(PATH.read_text() != current)
    PATH.write_text(current)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
