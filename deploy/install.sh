#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# install.sh DESTDIR: programs, units, users and examples, below DESTDIR ("" is this machine). A configuration that is
# there already stays. Nothing is started, and no user made, which the units and a package's scripts do.
set -eu
dest=${1-}
cd "$(dirname "$0")"
put() { # mode, file, where
	install -D -m "$1" "$2" "$dest$3"
}
for program in assay assay-agent assay-server; do
	put 0755 "../bin/$program" "/usr/bin/$program"
done
for unit in systemd/*; do
	put 0644 "$unit" "/usr/lib/systemd/system/${unit##*/}"
done
put 0644 sysusers.conf /usr/lib/sysusers.d/assay.conf
put 0644 tmpfiles.conf /usr/lib/tmpfiles.d/assay.conf
put 0644 ../docs/deploy.md /usr/share/doc/assay/deploy.md
put 0644 grafana/assay.json /usr/share/doc/assay/grafana.json
put 0644 prometheus/alerts.yml /usr/share/doc/assay/alerts.yml
for conf in server.hcl agent.hcl; do
	put 0644 "etc/$conf" "/usr/share/doc/assay/examples/$conf"
	[ -e "$dest/etc/assay/$conf" ] || put 0640 "etc/$conf" "/etc/assay/$conf"
done
