#!/usr/bin/env bash
# What the GitHub Action does: check and quote a spec, gate an evaluation, and tell it on the pull request.
# The pull request's files are all around: Python is isolated (-I), so that it imports none of them.
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

# One comment for each spec, known again by its first line.
marker="<!-- orchestrate: ${SPEC//[^A-Za-z0-9._\/-]/-} -->"

ours() { # the number of the comment that an earlier run wrote for this spec; nothing where there is none
  gh pr view "$PULL_REQUEST" --json comments | MARKER="$marker" python3 -I -c '
import json, os, sys
for comment in reversed(json.load(sys.stdin)["comments"]):
    if comment["viewerDidAuthor"] and comment["body"].startswith(os.environ["MARKER"]):
        print(comment["url"].rpartition("-")[2])
        break
'
}

comment() { # writes the page into our comment, or a new one
  local number
  number="$(ours)" || return
  if [ -n "$number" ]; then
    gh api --silent --method PATCH "repos/{owner}/{repo}/issues/comments/$number" --field "body=@$page"
  else
    gh pr comment "$PULL_REQUEST" --body-file "$page"
  fi
}

printf '%s\n## Fine-tuning: `%s`\n\n' "$marker" "${SPEC//\`/}" >"$page"
part Check orchestrate check "$SPEC" -p "$PROVIDER" || failed=1

printf '### Quote\n\n' >>"$page"
quotes="$(orchestrate quote "$SPEC" -p "$PROVIDER" --format md 2>/dev/null)" || failed=1
printf '%s\n\n' "${quotes:-no backend has a price}" >>"$page"

if [ -n "${FAIL_ABOVE_USD:-}" ]; then
  part "At most $FAIL_ABOVE_USD US dollars" python3 -I -c '
import json, subprocess, sys
from decimal import Decimal
told = subprocess.run(["orchestrate", "quote", *sys.argv[2:], "--json"], capture_output=True, text=True).stdout
high = [Decimal(q["high_usd"]) for q in json.loads(told or "[]") if q["high_usd"] is not None]
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
  comment || echo "::notice::no comment was written; the job's summary has the page"
fi
exit "$failed"
