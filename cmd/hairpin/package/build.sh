#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds the packages into a directory: deb, rpm, apk and ipk with nfpm, and a tarball, for amd64 and arm64. The same commit gives the
# same bytes. Usage: build.sh DIRECTORY [FORMAT-ARCH...], for example build.sh bin/packages deb-amd64; without formats: all.
#
# PACKAGE_VERSION replaces the version, of the binary too, SOURCE_DATE_EPOCH the time of the files, which is otherwise the time of the commit.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../../.." && pwd)
go=${GO:-$(command -v go || echo /usr/local/go/bin/go)}
formats=(deb rpm apk ipk tar)
arches=(amd64 arm64)

main() {
	umask 022
	local out=${1:?"usage: build.sh DIRECTORY [FORMAT-ARCH...]"}
	shift
	mkdir -p "$out"
	out=$(cd "$out" && pwd)
	cd "$top"
	release=${PACKAGE_VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo devel)}
	SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
	PACKAGE_VERSION=${PACKAGE_VERSION:-$(version)}
	PACKAGE_MAINTAINER=${PACKAGE_MAINTAINER:-hairpin maintainers <hairpin@users.noreply.invalid>}
	export SOURCE_DATE_EPOCH PACKAGE_VERSION PACKAGE_MAINTAINER
	[ $# -gt 0 ] || set -- $(for format in "${formats[@]}"; do printf "$format-%s " "${arches[@]}"; done)
	# The modules of nfpm are not hairpin's, so they have a file of their own.
	nfpm=$("$go" tool -modfile="$here/tools.mod" -n nfpm)
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	stage
	local one
	for one in "$@"; do
		package "$out" "${one%-*}" "${one#*-}"
	done
}

# version prints the version of a tag (v1.2.3), or for a commit without tag one that grows with the time of the commit, and that comes
# before every tag.
version() {
	local tag
	if tag=$(git describe --tags --exact-match --match 'v[0-9]*' 2>/dev/null); then
		echo "${tag#v}"
	else
		date -u -d "@$SOURCE_DATE_EPOCH" +0.0.0~git%Y%m%d%H%M%S
	fi
}

# stage makes what the packages of all architectures have in common.
stage() {
	local unit page
	mkdir -p "$work"/{usr-share/{hairpin,bash-completion/completions,fish/vendor_completions.d},doc}
	cp -r "$here/scripts" "$here/hairpin.procd" "$here/hairpin.openrc" cmd/hairpin/dist/hairpin.toml "$work"
	cp -r cmd/hairpin/dist/fail2ban cmd/hairpin/dist/crowdsec cmd/hairpin/dist/containers "$work/usr-share/hairpin"
	sed -i 's#/usr/local/share/#/usr/share/#' "$work/usr-share/hairpin/containers/hairpin-containers.service"
	cp "$here/lintian-overrides" "$work/lintian"
	for unit in cmd/hairpin/dist/*.service; do
		sed 's#/usr/local/bin/#/usr/bin/#' "$unit" >"$work/${unit##*/}"
	done
	cp "$here/copyright" cmd/hairpin/doc/*.md "$work/doc"
	"$go" build -o "$work/native" ./cmd/hairpin
	"$work/native" completion bash >"$work/usr-share/bash-completion/completions/hairpin"
	"$work/native" completion zsh >"$work/hairpin.zsh"
	"$work/native" completion fish >"$work/usr-share/fish/vendor_completions.d/hairpin.fish"
	for page in cmd/hairpin/dist/*.[1-8]; do
		[ -e "$page" ] || continue
		mkdir -p "$work/usr-share/man/man${page##*.}"
		gzip -9n <"$page" >"$work/usr-share/man/man${page##*.}/${page##*/}.gz"
	done
	printf 'hairpin (%s) unstable; urgency=medium\n\n  * Built from %s.\n\n -- %s  %s\n' "$PACKAGE_VERSION" "$release" "$PACKAGE_MAINTAINER" \
		"$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$work/changelog.gz"
	chmod -R u=rwX,go=rX "$work"
	chmod 755 "$work/usr-share/hairpin/crowdsec/hairpin-bouncer" "$work/usr-share/hairpin/containers/hairpin-containers"
	find "$work" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
}

# package builds one package: package DIRECTORY FORMAT ARCH.
package() {
	local out=$1 format=$2 arch=$3 name
	if [ ! -e "$out/$arch/hairpin" ] || [ -z "${built[$arch]:-}" ]; then
		mkdir -p "$out/$arch"
		CGO_ENABLED=0 GOARCH=$arch "$go" build -trimpath -ldflags "-s -w -X main.release=$release" -o "$out/$arch/hairpin" ./cmd/hairpin
		built[$arch]=1
	fi
	cp "$out/$arch/hairpin" "$work/hairpin"
	name=$out/hairpin_${PACKAGE_VERSION}_$arch
	if [ "$format" = tar ]; then
		tarball "$name"
		return
	fi
	(
		cd "$work"
		export PACKAGE_ARCH=$arch
		case $format in
		apk) PACKAGE_VERSION=${PACKAGE_VERSION/\~git/_git} ;; # apk has its own grammar of versions
		ipk) [ "$arch" != arm64 ] || PACKAGE_ARCH=aarch64_generic ;;
		esac
		"$nfpm" package --config "$here/nfpm.yaml" --packager "$format" --target "$name.$format" >/dev/null
	)
}

# tarball packs the binary with everything that "make install" would install below /usr/local.
tarball() {
	local root=$work/tar/hairpin
	rm -rf "$work/tar"
	make --no-print-directory -s -C "$top" install-files DESTDIR="$root" BINARY="$work/hairpin" PREFIX=/usr/local
	tar -C "$work/tar" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -c hairpin | gzip -9n >"$1.tar.gz"
}

declare -A built
main "$@"
