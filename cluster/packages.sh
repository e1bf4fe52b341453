#!/usr/bin/env bash
# packages.sh PACKAGE... : installs the Debian packages that are missing, where root may; else says what to do.
set -euo pipefail
missing=()
for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "packages: ${missing[*]} are not installed and this is not root on Debian; install them if a later step fails" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# Programs are wanted, not services: nothing that is installed here starts by itself.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
