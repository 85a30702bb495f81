#!/usr/bin/env bash
# Builds the C library and installs it: header, shared and static library, lacuna.pc.
#
#     targets/c/install.sh PREFIX [flags of cargo, such as --target aarch64-unknown-linux-gnu or --no-default-features]
#
# The profile is `small`, unless PROFILE names another one. DESTDIR is put before PREFIX where files are written. CARGO_BUILD
# names another verb of cargo than `build`, such as `zigbuild`, with which a target may end in a version of glibc.
set -euo pipefail
(($#)) || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
prefix=$1
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
target=
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --target) j=$((i + 1)); target=${!j} ;;
    --target=*) target=${!i#--target=} ;;
  esac
done
target=${target%%.*}
profile=${PROFILE:-small}

(cd "$root" && cargo "${CARGO_BUILD:-build}" --profile "$profile" -p lacuna-c "$@")

built=${CARGO_TARGET_DIR:-$root/target}/${target:+$target/}$profile
[[ $profile == dev ]] && built=${built%dev}debug
into=${DESTDIR:-}$prefix
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
abi=$(sed -n 's/^#define LACUNA_ABI_VERSION \([0-9]*\).*/\1/p' "$root/targets/c/include/lacuna.h")

install -d "$into/include" "$into/lib/pkgconfig"
install -m 644 "$root/targets/c/include/lacuna.h" "$into/include/"
install -m 644 "$built/liblacuna.a" "$into/lib/"
install -m 755 "$built/liblacuna.so" "$into/lib/liblacuna.so.$version"
ln -sf "liblacuna.so.$version" "$into/lib/liblacuna.so.$abi"
ln -sf "liblacuna.so.$abi" "$into/lib/liblacuna.so"
sed "s|@version@|$version|" "$root/targets/c/lacuna.pc.in" >"$into/lib/pkgconfig/lacuna.pc"
echo "installed in $into"
