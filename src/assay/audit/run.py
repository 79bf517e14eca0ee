"""All probes over one scored table, the gate's verdict, and the file that keeps both."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from assay.audit import probes
from assay.audit.gate import DEFAULT, GateSettings, Verdict, judge
from assay.audit.table import ScoredPairs, ScoredSamples
from assay.records import Finding
from assay.settings import InputError


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found, what the gate says, and how much data it rests on."""

    findings: tuple[Finding, ...]
    verdict: Verdict
    counts: Mapping[str, int]
    settings: GateSettings

    def __getitem__(self, probe: str) -> Finding:
        """The finding of that name."""
        for finding in self.findings:
            if finding.probe == probe:
                return finding
        raise KeyError(probe)

    def table(self) -> list[dict[str, str]]:
        """Rows for printing: probe, value, interval, n, limit, verdict ("pass", "FAIL" or ""), message."""
        return [_row(finding) for finding in self.findings]

    def save(self, path: str | Path) -> None:
        """Write JSON whole or not at all; NaN and infinity are written as null."""
        data = {
            "passed": self.verdict.passed,
            "reasons": list(self.verdict.reasons),
            "counts": dict(self.counts),
            "settings": dataclasses.asdict(self.settings),
            "findings": [finding.to_json() for finding in self.findings],
        }
        text = json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; null figures become NaN.

        Raises:
            InputError: the file is missing, is not JSON, or is not an audit.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(
                findings=tuple(_finding(item) for item in data["findings"]),
                verdict=Verdict(data["passed"], tuple(data["reasons"])),
                counts=data["counts"],
                settings=GateSettings(**data["settings"]),
            )
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; run `assay audit` first") from None
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {error.lineno}: not JSON ({error.msg})") from None
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: not an audit ({error}); run `assay audit` again") from None


def audit_pairs(
    pairs: ScoredPairs,
    samples: ScoredSamples | None = None,
    gate: GateSettings = DEFAULT,
    *,
    seed: int = 0,
) -> Audit:
    """Run every probe on held-out pairs and, where given, on several samples per prompt; then judge.

    Args:
        pairs: held-out comparisons with their rewards; at least one.
        samples: scored samples for the best-of-n curve; their oracle, where known, is judged too.
        gate: the limits.
        seed: of every bootstrap, split and random order.
    """
    if not len(pairs):
        raise InputError("audit_pairs: no scored pairs; give at least one held-out comparison")
    findings = [
        *probes.accuracy(pairs, seed=seed),
        *probes.length(pairs, seed=seed),
        *probes.rates(pairs),
        *probes.calibration(pairs, seed=seed),
        *probes.abstention(pairs),
    ]
    counts = {
        "pairs": len(pairs),
        "prompts": len(set(pairs.prompt_id)),
        "labelled_pairs": int(pairs.labelled.sum()),
        "failed_pairs": int(pairs.failed.sum()),
        "truncated_responses": int(pairs.truncated_chosen.sum() + pairs.truncated_rejected.sum()),
    }
    if samples is not None and len(samples):
        findings += [*probes.sample_rates(samples), *probes.best_of_n_curve(samples, seed=seed)]
        counts |= {
            "samples": len(samples),
            "sample_prompts": len(set(samples.prompt_id)),
            "failed_samples": int(samples.failed.sum()),
        }
    judged = tuple(judge(findings, gate))
    reasons = tuple(finding.message for finding in judged if not finding.passed)
    return Audit(judged, Verdict(not reasons, reasons), counts, gate)


def _row(finding: Finding) -> dict[str, str]:
    interval = ""
    if finding.interval is not None and all(math.isfinite(end) for end in finding.interval):
        interval = f"{finding.interval[0]:.3f} to {finding.interval[1]:.3f}"
    return {
        "probe": finding.probe,
        "value": f"{finding.value:.3f}" if math.isfinite(finding.value) else "-",
        "interval": interval,
        "n": str(finding.n),
        "limit": finding.limit,
        "verdict": ("pass" if finding.passed else "FAIL") if finding.limit or not finding.passed else "",
        "message": finding.message,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finding(data: Mapping[str, Any]) -> Finding:
    data = dict(data)
    data["value"] = math.nan if data["value"] is None else data["value"]
    if data.get("interval") is not None:
        data["interval"] = [math.nan if end is None else end for end in data["interval"]]
    return Finding.from_json(data)
