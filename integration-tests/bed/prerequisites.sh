#!/usr/bin/env bash
# Makes sure that this machine has what the build, the demo and the tests need. Installs through
# apt what is missing when it may (root, or sudo), else says exactly what is missing.
#
#   prerequisites.sh build     Rust, C and C++ compilers, cmake, make, perl: librdkafka and OpenSSL
#   prerequisites.sh lints     rustfmt and clippy
#   prerequisites.sh python    Python 3.10 or newer with venv, for the app ($MILLRACE_PYTHON, else python3)
#   prerequisites.sh kcat      kcat, the foreign client of the stories
#   prerequisites.sh kafka     Java 17 or newer and Maven, for a real Kafka
#
# Several can be named at once. Where nothing is missing it neither needs root nor the network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PATH=$HOME/.cargo/bin:$PATH

python=${MILLRACE_PYTHON:-python3}
java_major_min=17
missing=()  # one line each, in words
packages=() # what apt would install for them

say() { printf 'prerequisites: %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }
lacks() { missing+=("$1"); shift; packages+=("$@"); }

check_build() {
    local needed; needed=$(sed -n 's/^rust-version = "\(.*\)".*/\1/p' Cargo.toml)
    if ! have cargo; then
        lacks "cargo: the stable Rust toolchain, $needed or newer, from https://rustup.rs"
    else
        local found; found=$(cargo --version | cut -d' ' -f2)
        [[ $(printf '%s\n' "$needed" "$found" | sort -V | head -n 1) == "$needed" ]] ||
            lacks "cargo $needed or newer (found $found): rustup update stable"
    fi
    have cc && have c++ || lacks "a C and C++ compiler (g++)" g++
    have cmake || lacks "cmake" cmake
    have make || lacks "make" make
    # Debian always has perl-base, which is not enough for OpenSSL's Configure.
    perl -MFindBin -MIPC::Cmd -MTime::Piece -e1 2>/dev/null || lacks "perl with its core modules" perl
}

check_lints() {
    local tool
    for tool in fmt clippy; do
        cargo "$tool" --version >/dev/null 2>&1 && continue
        if have rustup; then
            say "installing rustfmt and clippy through rustup"
            rustup component add rustfmt clippy >&2 && return
        fi
        lacks "cargo $tool: rustup component add rustfmt clippy"
    done
}

check_python() {
    local version='import sys; print("%d.%d" % sys.version_info[:2])'
    local wanted='import sys; sys.exit(sys.version_info < (3, 10))'
    if ! have "$python"; then
        [[ $python == python3 ]] || { lacks "MILLRACE_PYTHON=$python, which does not exist"; return; }
        lacks "python3" python3 python3-venv
    elif ! "$python" -c "$wanted"; then
        lacks "Python 3.10 or newer ($python is $("$python" -c "$version")): install one and set MILLRACE_PYTHON to it"
    # ensurepip is what Debian splits off into python3-venv.
    elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        if [[ $(command -v "$python") == /usr/bin/* ]]; then
            lacks "venv for $python" "python$("$python" -c "$version")-venv"
        else
            lacks "venv for $(command -v "$python"): it lacks the module ensurepip"
        fi
    fi
}

check_kcat() { have kcat || lacks "kcat" kcat; }

java_major() { java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1; }

check_kafka() {
    local found=""
    ! have java || found=$(java_major)
    if ((${found:-0} < java_major_min)); then
        local package=default-jre-headless candidate
        for candidate in openjdk-17-jre-headless openjdk-21-jre-headless; do
            if apt-cache show "$candidate" >/dev/null 2>&1; then package=$candidate; break; fi
        done
        lacks "Java $java_major_min or newer (found ${found:-none})" "$package"
    fi
    have mvn || lacks "Maven (mvn)" maven
    # Brings keys out of the stores that keytool makes.
    have openssl || lacks "openssl" openssl
}

check() {
    missing=() packages=()
    local part
    for part in "$@"; do "check_$part"; done
}

# Succeeds when apt installed everything; a package list may be old or absent, hence two tries.
install_packages() {
    have apt-get || { say "this machine has no apt-get"; return 1; }
    local as_root=()
    if ((EUID != 0)); then
        have sudo || { say "neither root nor sudo"; return 1; }
        as_root=(sudo)
        # Nobody can type a password into a CI job.
        [[ -t 0 ]] || as_root=(sudo -n)
    fi
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
    say "installing through apt: ${packages[*]}"
    "${apt[@]}" install --no-install-recommends "${packages[@]}" >&2 && return
    "${apt[@]}" update >&2 || return
    "${apt[@]}" install --no-install-recommends "${packages[@]}" >&2
}

(($# > 0)) || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
check "$@"
((${#missing[@]} > 0)) || exit 0
((${#packages[@]} == 0)) || ! install_packages || check "$@"
((${#missing[@]} > 0)) || exit 0

say "missing on this machine:"
printf '  - %s\n' "${missing[@]}" >&2
((${#packages[@]} == 0)) || say "as root: apt-get update && apt-get install ${packages[*]}"
exit 1
