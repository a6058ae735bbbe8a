"""The search space: Ray Tune's words in TOML, checked against the config tree and handed to Optuna.

    [tune.space]
    "optim.lr" = { loguniform = [1e-5, 1e-3] }
    "loss.name" = { choice = ["bce", "focal"] }
    "loss.focal_gamma" = { uniform = [0, 4], when = { "loss.name" = "focal" } }

Bounds mean what they mean in Tune: `randint` and `lograndint` exclude the upper one, all others include it. A key whose
`when` does not hold is not drawn and keeps the base configuration's value.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats import qmc

from aneurysm_ray import overrides
from aneurysm_ray.config import Config
from aneurysm_ray.errors import ConfigError, did_you_mean

WORDS: dict[str, str] = {
    "uniform": "[low, high]",
    "quniform": "[low, high, step]",
    "loguniform": "[low, high]",
    "qloguniform": "[low, high, step]",
    "randint": "[low, high)",
    "qrandint": "[low, high, step]",
    "lograndint": "[low, high)",
    "choice": "[value, value, ...]",
}
"""The words a space may use, each with the shape of its arguments."""

FIXED: dict[str, str] = {
    "volume": "it is part of the prepared set",
    "prepare": "it is part of the prepared set",
    "folds": "trials must share their folds",
    "resources": "trials must share their resources",
    "tune": "it describes the search itself",
    "chosen": "a search writes it",
    "feed.cache_dir": "trials must share their cache",
}
"""Sections and keys of the config that a trial cannot change, and why."""


@dataclass(frozen=True)
class Parameter:
    """One searched key: how Optuna draws it, and what must hold for it to be drawn."""

    key: str
    distribution: BaseDistribution
    when: Mapping[str, tuple[Any, ...]]
    """Key to the values of which it must have one."""
    step: float = 0.0
    """Rounding of a logarithmic draw, which Optuna cannot quantise itself; 0 for none."""
    choices: Mapping[Any, Any] | None = None
    """Optuna's label of a choice to its value; lists have a label, since Optuna stores scalars only."""

    def value(self, drawn: Any) -> Any:
        """Turn what Optuna drew into what the configuration holds."""
        if self.choices is not None:
            return self.choices[drawn]
        if self.step and isinstance(self.distribution, FloatDistribution):
            nearest = round(drawn / self.step) * self.step
            return min(max(nearest, self.distribution.low), self.distribution.high)
        return drawn

    def at(self, share: float) -> Any:
        """Return the value at a share of the way through the distribution, in [0, 1)."""
        match self.distribution:
            case CategoricalDistribution(choices=labels):
                return self.value(labels[int(share * len(labels))])
            case FloatDistribution(low=low, high=high, step=None, log=log):
                return self.value(low * (high / low) ** share if log else low + share * (high - low))
            case FloatDistribution(low=low, high=high, step=step) | IntDistribution(low=low, high=high, step=step):
                if self.distribution.log:
                    return int(low * ((high + 1) / low) ** share)
                return low + step * int(share * (round((high - low) / step) + 1))
        raise AssertionError(self.distribution)

    def holds(self, value: Any) -> bool:
        """Say whether a value could have been drawn."""
        match self.distribution:
            case CategoricalDistribution(choices=labels):
                return any(_label(value) == label and type(_label(value)) is type(label) for label in labels)
            case FloatDistribution() | IntDistribution() if not isinstance(value, int | float):
                return False
            case FloatDistribution(low=low, high=high, step=step) | IntDistribution(low=low, high=high, step=step):
                steps = (value - low) / step if step else 0.0
                return bool(low <= value <= high and abs(steps - round(steps)) < 1e-8)
        raise AssertionError(self.distribution)


def parse(base: Config) -> tuple[Parameter, ...]:
    """Read `tune.space` into parameters, each after those its condition names.

    Raises ConfigError for unknown keys, words or arguments, for values that the configuration would refuse, and for
    conditions that go round in a circle.
    """
    if not base.tune.space:
        raise ConfigError("tune.space is empty; name a key, such as optim.lr = { loguniform = [1e-5, 1e-3] }")
    known = [key for key, _, _ in overrides.dotted_keys()]
    parameters = {}
    for key, spec in base.tune.space.items():
        if key not in known:
            raise ConfigError(f"tune.space: unknown key {key!r}{did_you_mean(key, known)}")
        if why := FIXED.get(key) or FIXED.get(key.split(".")[0]):
            raise ConfigError(f"tune.space: {key} cannot be searched: {why}")
        parameters[key] = _parameter(key, spec, known)
    for parameter in parameters.values():
        for value in _probes(parameter):
            overrides.build({parameter.key: value}, base=base)
        _check_conditions(parameter, parameters, base)
    return _in_order(parameters)


def suggest(trial: optuna.Trial, parameters: tuple[Parameter, ...], base: Config) -> dict[str, Any]:
    """Draw the active parameters for a trial; return dotted overrides of `base`.

    Keys in the trial's attribute `held` keep the base's value: the default configuration may lie outside the space.
    """
    held = trial.user_attrs.get("held", ())
    drawn: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.key not in held and _active(parameter, drawn, base):
            drawn[parameter.key] = parameter.value(_draw(trial, parameter))
    return drawn


def spread(parameters: tuple[Parameter, ...], count: int, seed: int) -> list[dict[str, Any]]:
    """Return `count` points that cover the space evenly, as dotted overrides: a scrambled Sobol sequence.

    The points of a smaller count are the first ones of a larger. Keys whose `when` does not hold have values as well.
    """
    sequence = qmc.Sobol(len(parameters), seed=seed)
    shares = sequence.random_base2(max(count - 1, 0).bit_length())[:count]
    return [{p.key: p.at(float(share)) for p, share in zip(parameters, row, strict=True)} for row in shares]


def decode(params: Mapping[str, Any], parameters: tuple[Parameter, ...]) -> dict[str, Any]:
    """Turn a trial's Optuna parameters back into dotted overrides."""
    return {p.key: p.value(params[p.key]) for p in parameters if p.key in params}


def point(
    values: Mapping[str, Any], parameters: tuple[Parameter, ...], base: Config
) -> tuple[dict[str, Any], list[str]]:
    """Return a configuration as Optuna parameters, and the active keys whose value lies outside the space.

    Keys that `values` does not name have the base's value.
    """
    inside: dict[str, Any] = {}
    outside = []
    for parameter in parameters:
        value = values.get(parameter.key, field(base, parameter.key))
        if not _active(parameter, values, base):
            continue
        if parameter.holds(value):
            inside[parameter.key] = _label(value) if parameter.choices is not None else value
        else:
            outside.append(parameter.key)
    return inside, outside


def field(config: Config, key: str) -> Any:
    """Return the value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _parameter(key: str, spec: Mapping[str, Any], known: list[str]) -> Parameter:
    words = [word for word in spec if word != "when"]
    if len(words) != 1 or words[0] not in WORDS:
        unknown = next((word for word in words if word not in WORDS), "")
        raise ConfigError(
            f"tune.space: {key} = {dict(spec)} needs one of {', '.join(WORDS)}{did_you_mean(unknown, WORDS)}"
        )
    (word,) = words
    arguments = spec[word]
    try:
        distribution, step, choices = _distribution(word, arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"tune.space: {key} = {word}({arguments}) is not {word} {WORDS[word]}: {error}") from error
    when = spec.get("when", {})
    if not isinstance(when, Mapping):
        raise ConfigError(f'tune.space: {key}: when = {when!r} is not of the form {{ "other.key" = value }}')
    for other in when:
        if other not in known:
            raise ConfigError(f"tune.space: {key}: when names the unknown key {other!r}{did_you_mean(other, known)}")
    conditions = {other: tuple(value) if isinstance(value, list) else (value,) for other, value in when.items()}
    return Parameter(key, distribution, conditions, step, choices)


def _distribution(word: str, arguments: Any) -> tuple[BaseDistribution, float, Mapping[Any, Any] | None]:
    if word == "choice":
        if not isinstance(arguments, list) or not arguments:
            raise ValueError("give a list of values")
        choices = {_label(value): value for value in arguments}
        if len(choices) < len(arguments):
            raise ValueError("a value is given twice")
        return CategoricalDistribution(tuple(choices)), 0.0, choices
    quantised = word.startswith("q")
    if not isinstance(arguments, list) or len(arguments) != 2 + quantised:
        raise ValueError(f"give {2 + quantised} numbers")
    low, high, *rest = arguments
    step = rest[0] if rest else None
    if not low < high:
        raise ValueError("the lower bound must be below the upper")
    if "log" in word and low <= 0:
        raise ValueError("a logarithmic draw needs bounds above 0")
    if step is not None and not 0 < step <= high - low:
        raise ValueError("the step must be above 0 and within the bounds")
    match word:
        case "uniform":
            return FloatDistribution(low, high), 0.0, None
        case "quniform":
            if abs((steps := (high - low) / step) - round(steps)) > 1e-8:
                raise ValueError("the step does not divide the span between the bounds")
            return FloatDistribution(low, high, step=step), 0.0, None
        case "loguniform":
            return FloatDistribution(low, high, log=True), 0.0, None
        case "qloguniform":
            return FloatDistribution(low, high, log=True), float(step or 0), None
    if any(int(value) != value for value in arguments):
        raise ValueError("give whole numbers")
    match word:
        case "randint":
            return IntDistribution(low, high - 1), 0.0, None
        case "qrandint":
            if (high - low) % step:
                raise ValueError("the step does not divide the span between the bounds")
            return IntDistribution(low, high, step=step), 0.0, None
        case "lograndint":
            return IntDistribution(low, high - 1, log=True), 0.0, None
    raise AssertionError(word)


def _probes(parameter: Parameter) -> list[Any]:
    """Return values that show whether the config takes all others: the bounds and one between, or each choice."""
    if parameter.choices is not None:
        return list(parameter.choices.values())
    bounds = parameter.distribution
    assert isinstance(bounds, FloatDistribution | IntDistribution)
    if isinstance(bounds, IntDistribution):
        return [bounds.low, bounds.high]
    # A share of the span that is not a round number shows a float that is drawn for a whole-number field.
    between = bounds.low + (bounds.step if bounds.step else 0.3719 * (bounds.high - bounds.low))
    return [bounds.low, parameter.value(between), bounds.high]


def _check_conditions(parameter: Parameter, parameters: Mapping[str, Parameter], base: Config) -> None:
    """Raise ConfigError for a condition on a value that its key cannot have: it would never hold, without a word."""
    for other, allowed in parameter.when.items():
        if not allowed:
            raise ConfigError(f"tune.space: {parameter.key}: when {other} = [] can never hold; name a value")
        for value in allowed:
            said = f"tune.space: {parameter.key}: when {other} = {value!r}"
            if other not in parameters:
                try:
                    overrides.build({other: value}, base=base)
                except ConfigError as error:
                    raise ConfigError(f"{said} can never hold: {error}") from error
            elif not parameters[other].holds(value):
                raise ConfigError(f"{said} is nothing that tune.space gives {other}{_meant(parameters[other], value)}")


def _meant(parameter: Parameter, value: Any) -> str:
    if parameter.choices is None:
        return ""
    return did_you_mean(str(value), [str(label) for label in parameter.choices])


def probes(parameters: Iterable[Parameter]) -> list[tuple[str, Any]]:
    """Return each key with values that show whether others would do."""
    return [(parameter.key, value) for parameter in parameters for value in _probes(parameter)]


def _in_order(parameters: Mapping[str, Parameter]) -> tuple[Parameter, ...]:
    ordered: list[Parameter] = []

    def place(key: str, path: tuple[str, ...]) -> None:
        if key in path:
            raise ConfigError(f"tune.space: the conditions of {' and '.join(dict.fromkeys(path))} wait for each other")
        if key in parameters and parameters[key] not in ordered:
            for other in parameters[key].when:
                place(other, (*path, key))
            ordered.append(parameters[key])

    for key in parameters:
        place(key, ())
    return tuple(ordered)


def _active(parameter: Parameter, drawn: Mapping[str, Any], base: Config) -> bool:
    return all(drawn.get(key, field(base, key)) in allowed for key, allowed in parameter.when.items())


def _draw(trial: optuna.Trial, parameter: Parameter) -> Any:
    match parameter.distribution:
        case CategoricalDistribution(choices=labels):
            return trial.suggest_categorical(parameter.key, labels)
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_float(parameter.key, low, high, step=step, log=log)
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(parameter.key, low, high, step=step, log=log)
    raise AssertionError(parameter.distribution)


def _label(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value
