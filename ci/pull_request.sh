#!/usr/bin/env bash
# What the GitHub Action does: check and quote a spec, gate an evaluation, and tell it on the pull request.
# From the environment: SPEC PROVIDER FAIL_ABOVE_USD GATE, and GitHub's own PULL_REQUEST GITHUB_STEP_SUMMARY.
set -uo pipefail

page="$(mktemp)"
failed=0

indented() { sed 's/^/    /'; } # a code block whatever the text holds

part() { # part TITLE COMMAND...: its output under a title; its exit code
  local title="$1" code
  shift
  local output
  output="$("$@" 2>&1)"
  code=$?
  printf '### %s\n\n' "$title" >>"$page"
  printf '%s\n' "$output" | indented >>"$page"
  printf '\n' >>"$page"
  return "$code"
}

printf '<!-- orchestrate -->\n## Fine-tuning: `%s`\n\n' "${SPEC//\`/}" >"$page"
part Check orchestrate check "$SPEC" -p "$PROVIDER" || failed=1

printf '### Quote\n\n' >>"$page"
quotes="$(orchestrate quote "$SPEC" -p "$PROVIDER" --format md 2>/dev/null)" || failed=1
printf '%s\n\n' "${quotes:-no backend has a price}" >>"$page"

if [ -n "${FAIL_ABOVE_USD:-}" ]; then
  part "At most $FAIL_ABOVE_USD US dollars" python3 -c '
import json, subprocess, sys
from decimal import Decimal
told = subprocess.run(["orchestrate", "quote", *sys.argv[2:], "--json"], capture_output=True, text=True).stdout
high = [Decimal(q["high_usd"]) for q in json.loads(told or "[]") if not q.get("unavailable")]
least = min(high, default=None)
print("no backend has a price" if least is None else f"the cheapest may cost up to {least} US dollars")
sys.exit(least is None or least > Decimal(sys.argv[1]))
' "$FAIL_ABOVE_USD" "$SPEC" -p "$PROVIDER" || failed=1
fi

if [ -n "${GATE:-}" ]; then
  read -r run test <<<"$GATE"
  part "Evaluation of $run" orchestrate eval "$run" --test "$test" --gate || failed=1
fi

cat "$page" >>"${GITHUB_STEP_SUMMARY:-/dev/stdout}"
if [ -n "${PULL_REQUEST:-}" ] && [ -n "${GH_TOKEN:-}" ]; then
  # A pull request from a fork has no right to comment: the summary has it all.
  gh pr comment "$PULL_REQUEST" --body-file "$page" --edit-last --create-if-none ||
    echo "::notice::no comment was written; the job's summary has the page"
fi
exit "$failed"
