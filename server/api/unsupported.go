// SPDX-License-Identifier: Apache-2.0

package api

const (
	noJWT        = "JWT-SVIDs are not issued by this version of the server; use X.509-SVIDs"
	noWIT        = "WIT-SVIDs are not issued by this version of the server; use X.509-SVIDs"
	noFederation = "federation is not supported by this version of the server"
	noNesting    = "nested servers are not supported by this version of the server"
	noAppend     = "authorities can not be added by hand in this version of the server; its CA publishes its own"
)

// unsupported are the methods of SPIRE's services that answer Unimplemented, and why. SPIRE's
// agents take that code as final; most others they repeat for half a minute.
var unsupported = map[string]string{
	"/spire.api.server.svid.v1.SVID/MintJWTSVID":         noJWT,
	"/spire.api.server.svid.v1.SVID/NewJWTSVID":          noJWT,
	"/spire.api.server.svid.v1.SVID/MintWITSVID":         noWIT,
	"/spire.api.server.svid.v1.SVID/BatchNewWITSVID":     noWIT,
	"/spire.api.server.svid.v1.SVID/NewDownstreamX509CA": noNesting,

	"/spire.api.server.bundle.v1.Bundle/AppendBundle":               noAppend,
	"/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority":        noNesting,
	"/spire.api.server.bundle.v1.Bundle/PublishWITAuthority":        noNesting,
	"/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle": noFederation,
	"/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle": noFederation,
	"/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle":    noFederation,
	"/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle": noFederation,
}
