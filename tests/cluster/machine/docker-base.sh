#!/usr/bin/env bash
# Make a small Debian 12 image out of Debian packages, without an image registry: what an image test is built on.
#
#   bash docker-base.sh [IMAGE]      default heatlens-test/base:bookworm; nothing is done when it is there
#   FORCE=1 bash docker-base.sh      make it afresh
#
# It holds Debian's minimal system and what this machine is set to: certificates, package sources, proxy.

set -euo pipefail

image=${1:-heatlens-test/base:bookworm}
suite=bookworm
client=/usr/bin/docker

complain() {
    printf 'docker-base: %s\n' "$*" >&2
    exit 4
}

# "MIRROR SUITE" lines: where apt of this machine takes Debian from. Other archives (codename-pgdg, stable) are not it.
sources() {
    local codename site release
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME-}")
    # shellcheck disable=SC2016 # apt fills them in
    apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' | sort -u |
        while read -r site release component; do
            [[ $component == main ]] || continue
            case $release in
                "$codename" | "$codename-updates" | "$codename-security")
                    printf '%s %s\n' "$site" "$suite${release#"$codename"}"
                    ;;
            esac
        done
}

# Certificates that this machine's administrator added, in the place from which an update of ca-certificates takes them.
trust_what_this_machine_trusts() {
    local bundle=etc/ssl/certs/ca-certificates.crt
    awk -v folder="$root/usr/local/share/ca-certificates" '
        /BEGIN CERTIFICATE/ { one = "" }
        { one = one $0 "\n" }
        /END CERTIFICATE/ && NR == FNR { known[one] = 1 }
        /END CERTIFICATE/ && NR != FNR && !(one in known) { printf "%s", one >(folder "/machine-" ++count ".crt") }
    ' "$root/$bundle" "/$bundle"
    chroot "$root" update-ca-certificates >/dev/null 2>&1
}

((EUID == 0)) || complain 'needs root'
if [[ -z ${FORCE-} ]] && "$client" image inspect "$image" >/dev/null 2>&1; then
    printf 'docker-base: %s is there\n' "$image"
    exit 0
fi
if ! command -v debootstrap >/dev/null; then
    { apt-get -q -o DPkg::Lock::Timeout=300 update &&
        DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends \
            debootstrap; } >/dev/null || complain 'apt-get could not install debootstrap'
fi
mirrors=$(sources)
mirror=$(awk -v suite="$suite" '$2 == suite { print $1; exit }' <<<"$mirrors")
[[ -n $mirror ]] || complain 'apt of this machine names no Debian mirror'

work=$(mktemp -d "${TMPDIR:-/var/tmp}/heatlens-base.XXXXXX")
trap 'rm -rf -- "$work"' EXIT
root=$work/root
if ! debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" "$mirror" >"$work/log" 2>&1; then
    tail -n 20 "$work/log" >&2
    complain "debootstrap could not make $suite from $mirror"
fi
awk '{ print "deb", $1, $2, "main" }' <<<"$mirrors" >"$root/etc/apt/sources.list"
apt-config dump | { grep -iE '^Acquire::[a-z:/.0-9-]*proxy' || true; } >"$root/etc/apt/apt.conf.d/90machine"
trust_what_this_machine_trusts
rm -rf -- "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/* "$root"/var/log/*
tar -C "$root" --numeric-owner -c . | "$client" import \
    --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'CMD ["bash"]' - "$image" >/dev/null
printf 'docker-base: made %s, %s\n' "$image" "$(du -sh "$root" | cut -f1)"
