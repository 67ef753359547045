#!/bin/sh
# The post-start hook of a container whose service takes over from that of another
# container in the same pod. It returns when this image serves for good, or fails; so
# whoever replaces the containers knows when the old one may go. Without an old
# process it returns when the first one serves, and it may be repeated.
#
# The kubelet runs it beside the service and ends it with the container: a service
# that fails to take over ends by itself, and this need not notice.
set -eu
: "${APP_VERSION:?the image has to say which version it is}"
: "${CROSSFADE_SOCKET:?which service?}"

# On probation it could still be sent away, hence --settled.
exec crossfade wait --version "$APP_VERSION" --settled --timeout "${POSTSTART_TIMEOUT:-5m}"
