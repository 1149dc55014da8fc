#!/usr/bin/env bash
# Scans an image of this machine for known faults and fails where one is critical, or where it cannot be scanned.
set -euo pipefail

image=$1
scan=$(gcloud artifacts docker images scan "$image" --quiet --format='value(response.scan)')
gcloud artifacts docker images list-vulnerabilities "$scan" --quiet \
    --format='table(vulnerability.effectiveSeverity,noteName,vulnerability.packageIssue[0].affectedPackage,vulnerability.packageIssue[0].fixedVersion.name)'
severities=$(gcloud artifacts docker images list-vulnerabilities "$scan" --quiet \
    --format='value(vulnerability.effectiveSeverity)')
if grep --quiet --line-regexp CRITICAL <<< "$severities"; then
    echo "$image has a critical fault, see the table: take a newer base (make pin-images) or a newer version (make lock)" >&2
    exit 1
fi
