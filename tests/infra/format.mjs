// What Terraform's own formatter, compiled to WebAssembly, says: `node tools.mjs TOOLS FILE…`.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const [tools, ...files] = process.argv.slice(2);
const { format } = createRequire(`${tools}/`)("@cdktf/hcl-tools");
let failed = false;
for (const file of files) {
  const text = readFileSync(file, "utf8");
  if ((await format(text)) !== text) {
    console.log(`${file}: terraform fmt would change it`);
    failed = true;
  }
}
process.exit(failed ? 1 : 0);
