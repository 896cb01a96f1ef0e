// Package spec embeds the OpenAPI document, which is the contract of Sluice's HTTP
// API.
package spec

import _ "embed"

//go:embed openapi.yaml
var openAPI string

// OpenAPI is the API's OpenAPI 3.1 document, in YAML.
func OpenAPI() string { return openAPI }
