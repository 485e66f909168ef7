# shellcheck shell=bash
# Sourced by quickstart and test: goes to the root of the project, installs what is missing and
# configures the release build. Everything it says goes to stderr.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# Names of Debian 12 and Ubuntu 24.04, each with what shows that it is there where there is no apt:
# a command, or a library that pkg-config knows.
requirements=(
  g++:g++ cmake:cmake ninja-build:ninja pkg-config:pkg-config ccache:ccache
  libsentencepiece-dev:lib=sentencepiece nlohmann-json3-dev:lib=nlohmann_json
  libcli11-dev:lib=CLI11 libedit-dev:lib=libedit libspdlog-dev:lib=spdlog libfmt-dev:lib=fmt
  libhwy-dev:lib=libhwy
  libgtest-dev:lib=gtest libgmock-dev:lib=gmock libbenchmark-dev:lib=benchmark)

package_installed() {
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# "command cmake" or "library fmt"
describe() {
  case "$1" in
    lib=*) echo "library ${1#lib=}" ;;
    *) echo "command $1" ;;
  esac
}

found_without_apt() {
  case "$1" in
    lib=*) pkg-config --exists "${1#lib=}" 2>/dev/null ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

check_without_apt() {
  local requirement missing=0
  for requirement in "${requirements[@]}"; do
    found_without_apt "${requirement#*:}" && continue
    [ "$missing" -ne 0 ] || echo "there is no apt here; install these and run this again:" >&2
    missing=1
    echo "  $(describe "${requirement#*:}") (on Debian and Ubuntu: ${requirement%%:*})" >&2
  done
  [ "$missing" -eq 0 ] || exit 1
}

install_packages() {
  local requirement missing=() as_root=()
  for requirement in "${requirements[@]}"; do
    package_installed "${requirement%%:*}" || missing+=("${requirement%%:*}")
  done
  [ "${#missing[@]}" -ne 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "missing packages; install them as root: apt-get install ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  echo "installing ${missing[*]}" >&2
  "${as_root[@]}" apt-get update -qq </dev/null >&2
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
    --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}" </dev/null >&2
}

# The CUDA backend is built where it can run: a GPU, nvcc, and no GSA_CUDA=OFF in the environment.
cuda_options() {
  if [ -z "${GSA_CUDA:-}" ] && command -v nvcc >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    GSA_CUDA=ON
  fi
  [ "${GSA_CUDA:-}" != ON ] || echo -DGSA_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native
}

configure() {
  if [ build/build.ninja -nt CMakePresets.json ] &&
    grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" build/CMakeCache.txt; then
    return 0
  fi
  local log options
  PATH=$PATH:/usr/local/cuda/bin
  read -ra options < <(cuda_options) || true
  if ! log=$(cmake --preset release --fresh "${options[@]}" 2>&1); then
    printf '%s\n' "$log" >&2
    exit 1
  fi
}

# Ninja's lines as one line that counts up on a terminal; what the compiler says as it is.
show_build() {
  local line counting=
  while IFS= read -r line; do
    case "$line" in
      "[0/"* | "ninja: no work to do.") ;;
      "["*/*"] "*)
        [ -t 2 ] || continue
        printf '\rbuilding %s]' "${line%%]*}" >&2
        counting=1
        ;;
      *)
        printf '%s%s\n' "${counting:+$'\n'}" "$line" >&2
        counting=
        ;;
    esac
  done
  [ -z "$counting" ] || echo >&2
}

build() {  # TARGET
  cmake --build --preset release -j "$(nproc)" --target "$1" 2>&1 | show_build
}

if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then
  install_packages
else
  check_without_apt
fi
configure
