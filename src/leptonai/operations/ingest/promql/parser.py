"""PromQL text to an expression; what we do not support is named.

Source: prometheus.io/docs/prometheus/latest/querying.
"""

from __future__ import annotations

import math

from leptonai.core.errors import InputError
from leptonai.operations.ingest.promql.lexer import Token, duration_ms, tokens, unquote
from leptonai.operations.ingest.promql.patterns import safe_matcher
from leptonai.operations.ingest.promql.syntax import (
    Aggregate,
    Binary,
    Call,
    Expression,
    Negated,
    Number,
    Selector,
    Text,
    Unsupported,
)
from leptonai.operations.series import NAME_LABEL
from leptonai.operations.store import Matcher
from leptonai.operations.store.matchers import OPS

AGGREGATIONS = frozenset(
    {"sum", "avg", "min", "max", "count", "stddev", "stdvar", "group", "topk", "bottomk", "quantile"}
)
RANGE_FUNCTIONS = frozenset({
    "rate", "irate", "increase", "delta", "idelta", "deriv", "changes", "resets", "avg_over_time", "sum_over_time",
    "min_over_time", "max_over_time", "count_over_time", "last_over_time", "stddev_over_time", "stdvar_over_time",
    "present_over_time", "quantile_over_time",
})  # fmt: skip
VECTOR_FUNCTIONS = frozenset({
    "abs", "ceil", "floor", "round", "exp", "ln", "log2", "log10", "sqrt", "sgn", "clamp", "clamp_min", "clamp_max",
    "timestamp", "histogram_quantile", "scalar", "vector", "time", "absent", "sort", "sort_desc", "label_replace",
})  # fmt: skip
_UNSUPPORTED = frozenset({
    "count_values", "predict_linear", "holt_winters", "label_join", "absent_over_time", "mad_over_time", "acos",
    "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "deg", "pi", "rad", "sin", "sinh", "tan", "tanh",
    "day_of_month", "day_of_week", "day_of_year", "days_in_month", "hour", "minute", "month", "year",
    "histogram_count", "histogram_sum", "histogram_fraction", "sort_by_label", "double_exponential_smoothing",
})  # fmt: skip
# Weakest first; ^ binds to the right.
_LEVELS = (
    ("or",),
    ("and", "unless"),
    ("==", "!=", "<=", "<", ">=", ">"),
    ("+", "-"),
    ("*", "/", "%", "atan2"),
    ("^",),
)
COMPARISONS = frozenset(_LEVELS[2])
SET_OPERATORS = frozenset({"or", "and", "unless"})
_MAX_DEPTH = 50
"""Of brackets within brackets, so that no query exhausts the stack."""


def parse(query: str) -> Expression:
    """The expression of a query.

    Raises:
        Unsupported: it uses something of PromQL that we do not support.
        InputError: it is not PromQL.

    >>> parse("sum by (job) (rate(a_total[5m]))").labels
    ('job',)
    """
    parser = _Parser(tokens(query))
    found = parser.expression()
    parser.expect("end", "")
    return found


def parse_selector(text: str) -> tuple[Matcher, ...]:
    """The matchers of a plain selector, as in ``match[]``.

    Raises:
        InputError: it is something else.
    """
    found = parse(text)
    if not isinstance(found, Selector) or found.range_ms or found.offset_ms:
        raise InputError(f"{text[:80]!r} is not a plain series selector")
    return found.matchers


class _Parser:
    def __init__(self, found: list[Token]) -> None:
        self._tokens, self._at, self._depth = found, 0, 0

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _take(self) -> Token:
        token = self._next
        if token.kind != "end":
            self._at += 1
        return token

    def _accept(self, *texts: str) -> str | None:
        if self._next.kind in ("op", "name") and self._next.text.lower() in texts:
            return self._take().text.lower()
        return None

    def expect(self, kind: str, text: str) -> Token:
        token = self._next
        if token.kind != kind or (text and token.text != text):
            what = f"{token.text[:40]!r}" if token.text else "the end"
            raise InputError(f"at character {token.at}: expected {text or kind}, found {what}")
        return self._take()

    def expression(self, level: int = 0) -> Expression:
        if level == 0:
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise InputError(f"brackets are nested deeper than {_MAX_DEPTH}")
        if level == len(_LEVELS) - 1:
            return self._unary()
        left = self.expression(level + 1)
        while (op := self._accept(*_LEVELS[level])) is not None:
            left = self._binary(op, left, level + 1)
        if level == 0:
            self._depth -= 1
        return left

    def _unary(self) -> Expression:
        sign = self._accept("+", "-")
        if sign is not None:
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise InputError("too many signs in a row")
            inner = self._unary()  # -a^b is -(a^b)
            self._depth -= 1
            return Negated(inner) if sign == "-" else inner
        left = self._primary()
        if self._accept("^") is not None:
            return self._binary_tail("^", left, self._modifiers("^"))
        return left

    def _binary(self, op: str, left: Expression, level: int) -> Expression:
        if op == "atan2":
            raise Unsupported("the operator atan2 is not supported")
        returns_bool, on, ignoring = self._modifiers(op)
        right = self.expression(level)
        return Binary(op, left, right, returns_bool, on, ignoring)

    def _binary_tail(
        self, op: str, left: Expression, modifiers: tuple[bool, tuple[str, ...] | None, tuple[str, ...]]
    ) -> Expression:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise InputError("too many powers in a row")
        right = self._unary()
        self._depth -= 1
        return Binary(op, left, right, *modifiers)

    def _modifiers(self, op: str) -> tuple[bool, tuple[str, ...] | None, tuple[str, ...]]:
        returns_bool = self._accept("bool") is not None
        if returns_bool and op not in COMPARISONS:
            raise InputError("bool belongs after a comparison")
        on: tuple[str, ...] | None = None
        ignoring: tuple[str, ...] = ()
        word = self._accept("on", "ignoring")
        if word == "on":
            on = self._label_list()
        elif word == "ignoring":
            ignoring = self._label_list()
        if word is not None and (group := self._accept("group_left", "group_right")) is not None:
            raise Unsupported(f"{group} is not supported: sides are matched one to one")
        return returns_bool, on, ignoring

    def _label_list(self) -> tuple[str, ...]:
        self.expect("op", "(")
        names = []
        while self._accept(")") is None:
            names.append(self.expect("name", "").text)
            if self._accept(",") is None:
                self.expect("op", ")")
                break
        return tuple(names)

    def _primary(self) -> Expression:
        token = self._take()
        found: Expression
        if token.kind == "number":
            value = int(token.text, 16) if token.text[:2].lower() == "0x" else float(token.text)
            found = Number(float(value))
        elif token.kind == "text":
            return Text(unquote(token.text))
        elif token.text == "(":
            found = self.expression()
            self.expect("op", ")")
        elif token.text == "{":
            found = self._selector(None)
        elif token.kind == "name":
            found = self._named(token)
        else:
            raise InputError(f"at character {token.at}: unexpected {token.text[:40] or 'end'!r}")
        return self._suffix(found)

    def _named(self, token: Token) -> Expression:
        lower = token.text.lower()
        if lower in ("inf", "nan") and self._next.text not in ("{", "["):
            return Number(math.inf if lower == "inf" else math.nan)
        if lower in AGGREGATIONS and (self._next.text == "(" or self._next.text.lower() in ("by", "without")):
            return self._aggregate(lower)
        if self._next.text != "(":
            return self._selector(token.text)
        if token.text in _UNSUPPORTED:
            raise Unsupported(f"the function {token.text} is not supported")
        if token.text not in RANGE_FUNCTIONS | VECTOR_FUNCTIONS:
            raise InputError(f"at character {token.at}: unknown function {token.text[:40]!r}")
        return Call(token.text, tuple(self._arguments()))

    def _arguments(self) -> list[Expression]:
        self.expect("op", "(")
        found: list[Expression] = []
        if self._accept(")") is not None:
            return found
        while True:
            found.append(self.expression())
            if self._accept(",") is None:
                self.expect("op", ")")
                return found

    def _aggregate(self, name: str) -> Expression:
        word = self._accept("by", "without")
        labels = self._label_list() if word else ()
        arguments = self._arguments()
        if not word:
            word = self._accept("by", "without")
            labels = self._label_list() if word else ()
        wanted = 2 if name in ("topk", "bottomk", "quantile") else 1
        if len(arguments) != wanted:
            raise InputError(f"{name} takes {wanted} argument(s), found {len(arguments)}")
        parameter = arguments[0] if wanted == 2 else None
        return Aggregate(name, arguments[-1], labels, word == "without", parameter)

    def _selector(self, name: str | None) -> Selector:
        matchers = [] if name is None else [Matcher(NAME_LABEL, "=", name)]
        if name is None or self._accept("{") is not None:
            while self._accept("}") is None:
                label = self.expect("name", "").text
                op = self.expect("op", "").text
                kind = next((each for each in OPS if each == op), None)
                if kind is None:
                    raise InputError(f"expected one of {', '.join(OPS)} after {label[:40]}, found {op!r}")
                matchers.append(safe_matcher(label, kind, unquote(self.expect("text", "").text)))
                if self._accept(",") is None:
                    self.expect("op", "}")
                    break
        if all(matcher.accepts("") for matcher in matchers):
            raise InputError("a selector needs at least one matcher that does not match the empty string")
        return Selector(tuple(matchers))

    def _suffix(self, found: Expression) -> Expression:
        while True:
            if self._accept("[") is not None:
                range_ms = duration_ms(self.expect("duration", "").text)
                if self._next.text.startswith(":"):
                    raise Unsupported("subqueries are not supported")
                self.expect("op", "]")
                if not isinstance(found, Selector) or found.range_ms or range_ms <= 0:
                    raise InputError("a range [...] belongs after a plain selector, and must be > 0")
                found = Selector(found.matchers, range_ms, found.offset_ms)
            elif self._accept("offset") is not None:
                sign = -1 if self._accept("-") else 1
                offset_ms = sign * duration_ms(self.expect("duration", "").text)
                if not isinstance(found, Selector) or found.offset_ms:
                    raise InputError("offset belongs after a selector, once")
                found = Selector(found.matchers, found.range_ms, offset_ms)
            elif self._accept("@") is not None:
                raise Unsupported("the @ modifier is not supported")
            else:
                return found
